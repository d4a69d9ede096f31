"""Weights that are subclasses of tensors, as torchao's quantised ones: gated behind the layer, hashed, baked into."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memmod import ModulateConfig, ModulatedModel, modulate
from memmod.errors import MemoryFileError, ModelError
from memmod.files.state_hash import state_sha256
from memmod.functional import modulated_conv2d
from memmod.surgery.random_weights import randomise


class Int8Weight(Tensor):
    """Whole numbers ``[O, I, ...]`` and a scale for each unit; made, copied and applied as torchao's `Int8Tensor` is.

    `is_dynamic` rounds what it is applied to as well, and has no gradient.
    """

    @staticmethod
    def __new__(cls, values: Tensor, scale: Tensor, is_dynamic: bool) -> Int8Weight:
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=scale.dtype, device=values.device)

    def __init__(self, values: Tensor, scale: Tensor, is_dynamic: bool) -> None:
        self.values_, self.scale, self.is_dynamic = values, scale, is_dynamic

    @classmethod
    def of(cls, weight: Tensor, is_dynamic: bool = False) -> Int8Weight:
        scale = weight.detach().abs().amax(tuple(range(1, weight.dim())), keepdim=True) / 127
        return cls((weight.detach() / scale).round().to(torch.int8), scale, is_dynamic)

    def __tensor_flatten__(self) -> tuple[list[str], list]:
        return ["values_", "scale"], [self.is_dynamic, torch.int8]

    @staticmethod
    def __tensor_unflatten__(tensors: dict, context: list, size, stride) -> Int8Weight:
        return Int8Weight(tensors["values_"], tensors["scale"], context[0])

    def dequantize(self) -> Tensor:
        return self.values_ * self.scale

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.conv2d:
            x, weight, bias, *options = args
            return F.conv2d(x, weight.dequantize(), bias, *options)
        if func is F.linear:
            x, weight, bias = (*args, *(kwargs or {}).values(), None)[:3]
            if not weight.is_dynamic:
                return F.linear(x, weight.dequantize(), bias)
            with torch.no_grad():
                step = x.abs().amax(-1, keepdim=True) / 127
                return F.linear((x / step).round() * step, weight.dequantize(), bias)
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            own = args[0]
            return cls(func(own.values_), func(own.scale), own.is_dynamic)
        raise NotImplementedError(f"Int8Weight has no {func}")


X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


def network(is_dynamic: bool = False, quantised: tuple[int, ...] = (0, 2, 4)) -> nn.Module:
    torch.manual_seed(0)
    base = randomise(nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4))).eval()
    for place in quantised:
        weight = Int8Weight.of(base[place].weight, is_dynamic)
        base[place].weight = nn.Parameter(weight, requires_grad=False)
    return base


def train(wf: ModulatedModel) -> None:
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(torch.randn(memory.shape, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("granularity", ["unit", "input", "unit+input"])
def test_quantised_weights_are_gated(granularity: str, tmp_path) -> None:
    base = network()
    wf = modulate(base, example_input=X, config=ModulateConfig(granularity=granularity))
    rows = {row.name: row for row in wf.summary().rows}
    assert rows["0"].action == rows["2"].action == "gated" and "its weight is of type Int8Weight" in rows["0"].reason
    assert torch.equal(wf(X, forget=-1), base(X))
    wf.verify(X)
    train(wf)
    wf(X, forget=torch.tensor([0, 1, -1])).square().sum().backward()
    assert all(memory.grad[:2].any() and not memory.grad[2].any() for memory in wf.memory_parameters())
    assert all(type(wf.model[place].inner.weight) is Int8Weight for place in (0, 2)), "stays quantised"

    wf.save_memory(tmp_path / "m.safetensors")
    again = ModulatedModel.from_file(base, tmp_path / "m.safetensors")
    assert torch.equal(again(X, forget=1), wf(X, forget=1))
    baked = wf.bake(1)
    torch.testing.assert_close(baked(X), wf(X, forget=1))
    if granularity == "unit":
        # The gates are in the weights, which are ordinary ones.
        assert type(baked[0]) is type(baked[2]) is nn.Linear and type(baked[0].weight) is nn.Parameter
    assert torch.equal(wf.unload()(X), base(X)) and type(wf.unload()[0].weight) is Int8Weight


def test_layers_that_round_their_input_serve_but_do_not_train(caplog) -> None:
    base = network(is_dynamic=True)
    with caplog.at_level(logging.WARNING):
        wf = modulate(base, example_input=X)
    assert "no gradient of the logits of Sequential comes back to 0, 2" in caplog.text
    wf.verify(X)
    train(wf)
    torch.testing.assert_close(wf.bake(1)(X), wf(X, forget=1))
    assert not torch.allclose(wf(X, forget=1), base(X), atol=1e-3)


def test_memories_of_the_network_before_serve_the_quantised_one() -> None:
    plain = modulate(network(quantised=()), example_input=X)
    train(plain)
    wf = modulate(network(), example_input=X)
    wf.load_memory_state(plain.memory_state())
    scale = plain(X, forget=1).abs().max()
    assert (wf(X, forget=1) - plain(X, forget=1)).abs().max() < 0.05 * scale
    assert (wf(X, forget=1) - wf(X)).abs().max() > 0.1 * scale


@pytest.mark.parametrize(
    "options",
    [{}, {"gate_bias": False}, {"granularity": "input"}, {"granularity": "unit+input"}, {"gate": "identity"}],
    ids=str,
)
def test_layers_are_quantised_after_they_were_gated(options: dict) -> None:
    def gated(base: nn.Module) -> ModulatedModel:
        wf = modulate(base, example_input=X, config=ModulateConfig(**options))
        train(wf)
        return wf

    # What the layers would compute with the values that quantised weights have.
    rounded = network(quantised=())
    wf, index = gated(network(quantised=())), torch.tensor([0, 1, -1])
    for place in (0, 2):
        weight = Int8Weight.of(wf.model[place].weight)
        rounded[place].weight.data.copy_(weight.dequantize())
        wf.model[place].weight = nn.Parameter(weight, requires_grad=False)
    expected = gated(rounded)
    for forget in (-1, 1, index):
        torch.testing.assert_close(wf(X, forget=forget), expected(X, forget=forget))
    wf.verify(X)
    for model in (wf, expected):
        model(X, forget=index).square().sum().backward()
    for own, other in zip(wf.memory_parameters(), expected.memory_parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)
    torch.testing.assert_close(wf.bake(1)(X), expected.bake(1)(X))


@pytest.mark.parametrize("gate_bias", [True, False])
@pytest.mark.parametrize("padding", [1, "same"])
def test_convolutions(padding: int | str, gate_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x, weight, bias = normal(3, 4, 6, 6), Int8Weight.of(normal(8, 2, 3, 3)), normal(8)
    memories = {"memory": normal(5, 8), "input_memory": normal(5, 4)}
    options = {"padding": padding, "groups": 2, "gate_bias": gate_bias, "activation": "relu"}
    index = torch.tensor([[0, 3], [-1, -1], [4, -1]])
    found, expected = (
        modulated_conv2d(x, w, bias, index=index, **memories, **options) for w in (weight, weight.dequantize())
    )
    torch.testing.assert_close(found, expected)


def test_the_hash_is_of_what_such_a_weight_is_made_of(tmp_path) -> None:
    base = network()
    assert state_sha256(base) == state_sha256(network())
    hashes = {state_sha256(network(quantised=())), state_sha256(base), state_sha256(network(is_dynamic=True))}
    for change in ("values_", "scale"):
        other = network()
        getattr(other[2].weight, change)[0, 0] += 1
        hashes.add(state_sha256(other))
    assert len(hashes) == 5
    modulate(base, example_input=X).save_memory(tmp_path / "m.safetensors")
    with pytest.raises(MemoryFileError, match="belongs to another base"):
        ModulatedModel.from_file(network(is_dynamic=True), tmp_path / "m.safetensors")


def test_a_context_that_cannot_be_hashed_is_named() -> None:
    base = network()
    base[2].weight.is_dynamic = object()
    with pytest.raises(ModelError, match=r"'2.weight.*' of the model's state dict holds a object"):
        modulate(base, example_input=X)
