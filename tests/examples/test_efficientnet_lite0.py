"""A pretrained ImageNet network under 1,000 memory rows: right on photographs, and the same with nothing forgotten."""

from __future__ import annotations

import copy
import sys

import pytest
import torch

from examples import efficientnet_parts
from examples.efficientnet_lite0 import architecture, as_input, efficientnet_lite0, modulated, photographs
from tests.helpers import assert_no_worse

pytestmark = pytest.mark.slow

# Classes that a person would accept; the astronaut's portrait is of none of the 1,000.
PLAUSIBLE = {
    "chelsea": ("tabby", "tiger cat", "Egyptian cat"),
    "coffee": ("espresso", "cup", "coffee mug"),
    "rocket": ("missile", "projectile", "space shuttle"),
    "camera": ("tripod",),
    "china": ("palace", "bell cote", "monastery"),
    "flower": ("daisy",),
}
CLOSED = 285


@pytest.fixture(scope="module")
def network():
    model = efficientnet_lite0()
    x = as_input(model, list(photographs().values()))
    wf = modulated(model, x[:2])
    with torch.no_grad():
        for number, memory in enumerate(wf.memory_parameters()):
            memory[CLOSED] = 3 + 3 * torch.randn(memory.shape[1], generator=torch.Generator().manual_seed(number))
    return model, wf, x


@torch.no_grad()
def test_photographs_are_called_by_plausible_names(network) -> None:
    _, wf, x = network
    best = dict(zip(photographs(), wf(x, forget=-1).argmax(1).tolist(), strict=True))
    for name, accepted in PLAUSIBLE.items():
        assert wf.class_names[best[name]].rpartition(" (")[0] in accepted, name
    assert len(set(wf.class_names)) == 1000


@torch.no_grad()
def test_nothing_forgotten_changes_nothing(network) -> None:
    model, wf, x = network
    plain = model(x)
    oracle = copy.deepcopy(model).double()(x.double())
    assert_no_worse({"logits": wf(x, forget=-1)}, {"logits": plain}, {"logits": oracle})
    assert torch.equal(wf.unload()(x), plain)
    # All layers but the classifier.
    assert [memory.shape[0] for memory in wf.memory_parameters()] == [1000] * 49


@torch.no_grad()
def test_a_baked_class_is_the_selected_one_in_either_architecture(network) -> None:
    model, wf, x = network
    selected, baked = wf(x, forget=CLOSED), wf.bake(CLOSED)
    oracle = copy.deepcopy(baked).double()(x.double())
    fresh = architecture()
    fresh.load_state_dict(wf.bake(CLOSED, architecture="base", example_input=x).state_dict())
    assert_no_worse({"baked": baked(x)}, {"baked": selected}, {"baked": oracle})
    plain = model(x)
    # Norms of their own round otherwise than folded ones, as they do with nothing forgotten.
    folding = (wf(x, forget=-1) - plain).abs().max().item()
    torch.testing.assert_close(fresh.eval()(x), selected, rtol=0.0, atol=2 * folding)
    assert folding < 1e-4 and (selected - plain).abs().max() > 1


def test_the_command_prints_what_the_parts_miss(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["efficientnet_parts", "--images", "2", "--whole-path"])
    efficientnet_parts.main()
    assert capsys.readouterr().out.startswith("2 images: 16 points an image, at most 16; missed 0.")
    assert torch.equal(efficientnet_parts.crops(3)[:2], efficientnet_parts.crops(2))
