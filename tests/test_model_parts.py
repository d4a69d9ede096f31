"""What a ModulatedModel lets be changed of its base: attributes and state dicts."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from memmod import ModulatedModel, modulate
from memmod.errors import ModelError
from memmod.surgery.random_weights import randomise
from memmod.zoo import create_model

SHAPE = (1, 8, 8)


def small(seed: int = 0, name: str = "resnet") -> nn.Module:
    return randomise(create_model(name, 10, SHAPE, seed=seed), seed).eval()


@pytest.fixture
def wf() -> ModulatedModel:
    return modulate(small())


def test_parts_of_the_base_cannot_be_replaced(wf: ModulatedModel) -> None:
    head = wf.fc
    for name, value in (("fc", nn.Linear(64, 4)), ("stem", None), ("blocks", nn.Identity()), ("fc", torch.zeros(2))):
        with pytest.raises(ModelError, match=f"^{name} is part of the frozen base"):
            setattr(wf, name, value)
    for other in (small(), nn.Linear(2, 2), None):
        with pytest.raises(ModelError, match="modulate.. the other model"):
            wf.model = other
    assert wf.fc is head is wf.model.fc and "fc" not in wf._modules


def test_reset_classifier_is_refused() -> None:
    base = timm.create_model("resnet18", num_classes=5)
    wf = modulate(base, example_input=torch.randn(2, 3, 32, 32))
    with pytest.raises(ModelError, match="memories were made for its 5 classes"):
        wf.reset_classifier(4)
    assert wf.get_classifier().out_features == 5
    assert not hasattr(modulate(small()), "reset_classifier")


def test_plain_attributes_reach_the_base(wf: ModulatedModel) -> None:
    wf.model.mode = "fast"
    wf.mode = "slow"
    assert wf.model.mode == "slow" and "mode" not in wf.__dict__
    wf.default_cfg = {"input_size": SHAPE, "num_classes": 10}
    assert wf.model.default_cfg is wf.default_cfg
    # What the base does not have is the wrapper's own.
    wf.note = "mine"
    assert not hasattr(wf.model, "note") and copy.deepcopy(wf).note == "mine"
    wf.class_names = tuple("abcdefghij")
    torch.testing.assert_close(wf(torch.zeros(2, *SHAPE), forget="c"), wf(torch.zeros(2, *SHAPE), forget=2))


def snapshot(wf: ModulatedModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in wf.state_dict().items()}


def unchanged(wf: ModulatedModel, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in wf.state_dict().items())


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_a_state_dict_of_another_base_is_refused(name: str, strict: bool, assign: bool) -> None:
    wf, other = modulate(small(0, name)), modulate(small(1, name))
    before = snapshot(wf)
    with pytest.raises(ModelError, match="that of a model with another base .model"):
        wf.load_state_dict(other.state_dict(), strict=strict, assign=assign)
    assert unchanged(wf, before)
    # One changed weight is another base.
    state = snapshot(wf)
    head = "model.head.weight" if name == "vit" else "model.fc.weight"
    state[head][0, 0] += 1e-3
    with pytest.raises(ModelError, match=f"{head} has other values"):
        nn.Sequential(wf).load_state_dict({f"0.{key}": value for key, value in state.items()})
    assert unchanged(wf, before)


def test_a_state_dict_of_the_same_base_loads_its_memories(wf: ModulatedModel) -> None:
    other = modulate(small())
    with torch.no_grad():
        for memory in other.memory_parameters():
            memory.normal_()
    wf.load_state_dict(other.state_dict())
    x = torch.randn(2, *SHAPE)
    assert torch.equal(wf(x, forget=3), other(x, forget=3))
    memories = {f"model.{name}": torch.zeros_like(memory) for name, memory in wf.named_memories()}
    wf.load_state_dict(memories, strict=False)
    assert not any(memory.any() for memory in wf.memory_parameters())


def test_a_state_dict_in_lower_precision() -> None:
    wf, half = modulate(small()), modulate(small()).to(torch.bfloat16)
    half.load_state_dict(wf.state_dict())
    with pytest.raises(ModelError, match="another base"):
        wf.load_state_dict(half.state_dict())


def test_statistics_that_are_not_a_number_are_the_same() -> None:
    base = small(name="vit")
    base.register_buffer("unset", torch.full((3,), float("nan")))
    modulate(base).load_state_dict(modulate(base).state_dict())
