"""verify(): planted faults of every kind are named, at any depth; its cost is linear in depth and free of classes."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from memmod import ModulateConfig, ModulatedLinear, modulate
from memmod.errors import ModelError
from memmod.nn.modulated import Modulated

WIDTH = 6
X = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))


class Deaf(ModulatedLinear):
    """Asks for its gate and does not use it."""

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        self.modulation(index)
        return F.linear(x, self.weight, self.bias)


class Detached(ModulatedLinear):
    """Its gate has a derivative, but no effect."""

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        y = super().forward(x, index)
        return F.linear(x, self.weight, self.bias) + (y - y.detach())


class WithoutGrad(ModulatedLinear):
    """The same without a call of detach."""

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        y = super().forward(x, index)
        with torch.no_grad():
            value = y * 1
        return F.linear(x, self.weight, self.bias) + (y - value)


class _Claims(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gated: Tensor, plain: Tensor) -> Tensor:
        return plain.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _ClaimsAsMemmod(_Claims):
    pass


# As the library's own ops, whose derivatives are believed.
_ClaimsAsMemmod.__module__ = "memmod.planted"


class OwnBackward(ModulatedLinear):
    """Its derivative is somebody's own, and wrong."""

    function = _Claims

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        return self.function.apply(super().forward(x, index), F.linear(x, self.weight, self.bias))


class WrongKernel(OwnBackward):
    """A kernel of the library whose backward has a gate and whose forward has none."""

    function = _ClaimsAsMemmod


class Rounded(ModulatedLinear):
    """Acts, but has no derivative."""

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        return (super().forward(x, index) * 64).round() / 64


class Chain(nn.Module):
    """Residual layers one behind the other; some of a planted kind."""

    def __init__(self, depth: int, planted: type[ModulatedLinear] = ModulatedLinear, at: tuple[int, ...] = ()) -> None:
        super().__init__()
        torch.manual_seed(0)
        kinds = [planted if place in at else ModulatedLinear for place in range(depth)]
        self.layers = nn.ModuleList(kind(WIDTH, WIDTH, 4) for kind in kinds)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).tanh()
        return self.head(x)


def verified(base: nn.Module, **options) -> None:
    modulate(base, example_input=X, config=ModulateConfig(**options)).verify(X)


def names(places: tuple[int, ...]) -> str:
    return ", ".join(f"layers.{place}" for place in places)


@pytest.mark.parametrize("at", [(0,), (11,), (23,), (3, 4, 17)])
@pytest.mark.parametrize("kind", [Deaf, Detached, WithoutGrad, OwnBackward, WrongKernel])
def test_a_gate_without_effect_is_named(kind: type[ModulatedLinear], at: tuple[int, ...]) -> None:
    with pytest.raises(ModelError) as caught:
        verified(Chain(24, kind, at))
    assert str(caught.value).startswith(f"{names(at)} are gated, but their gates do not change the logits")


def test_layers_that_act_are_not_named_where_autograd_cannot_tell() -> None:
    verified(Chain(24))
    verified(Chain(24, Rounded, (5, 20)))


def test_of_many_idle_layers_eight_are_named() -> None:
    with pytest.raises(ModelError, match=r"layers\.2, .*layers\.9 and 12 more are gated, but"):
        verified(Chain(24, Deaf, tuple(range(2, 22))))


class Sideways(ModulatedLinear):
    """Fed with its samples in another order."""

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        return super().forward(x.roll(1, 0), index).roll(-1, 0)


@pytest.mark.parametrize("at", [(0,), (11,), (23,), (3, 4, 17)])
def test_a_gate_that_acts_on_another_sample_is_named(at: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=f"changes other samples' logits; the rows of {names(at)} are not sample"):
        verified(Chain(24, Sideways, at))


def test_of_many_layers_that_mix_eight_are_named() -> None:
    with pytest.raises(ModelError, match=r"the rows of layers\.0, .*layers\.7 and perhaps others are not"):
        verified(Chain(24, Sideways, tuple(range(24))))


class Loudest(nn.Module):
    """The larger of two layers is taken, so that gating both may change nothing that gating one does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(12))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        for a, b in zip(self.layers[::2], self.layers[1::2], strict=True):
            x = x + torch.maximum(a(x), b(x))
        return self.head(x)


@pytest.mark.parametrize("gate", ["sigmoid", "identity", "hard"])
def test_gates_of_every_form(gate: str) -> None:
    verified(Loudest(), gate=gate)
    with pytest.raises(ModelError, match=r"layers\.7 are gated, but"):
        verified(Chain(12, Deaf, (7,)), gate=gate)


class _Drawn(TorchFunctionMode):
    largest = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.randn:
            self.largest = max(self.largest, out.numel())
        return out


def test_its_noise_does_not_grow_with_the_classes() -> None:
    base = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 50_000))
    wf = modulate(base, example_input=X)
    with _Drawn() as drawn:
        wf.verify(X)
    # the weights of the logits' projection
    assert drawn.largest == 50_000
    assert max(memory.numel() for memory in wf.memory_parameters()) == WIDTH * 50_000


def calls_of_a_layer(base: Chain) -> int:
    """How often the first layer runs while a model is verified, its calls for comparison included."""
    wf = modulate(base, example_input=X)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    wf.model.layers[0].register_forward_pre_hook(count)
    try:
        wf.verify(X)
    except ModelError:
        assert any(isinstance(layer, Deaf) for layer in wf.model.modules())
    return calls


def test_its_passes_do_not_grow_with_depth() -> None:
    assert calls_of_a_layer(Chain(8)) == calls_of_a_layer(Chain(64)) <= 5
    # An idle layer is tried alone.
    assert calls_of_a_layer(Chain(64, Deaf, (40,))) <= 9
    # All of them together, those that are named alone.
    assert calls_of_a_layer(Chain(64, Deaf, tuple(range(1, 64)))) <= 12


def test_other_threads_may_run_the_model_meanwhile() -> None:
    wf = modulate(Chain(6), example_input=X)
    expected = wf(X, forget=1)
    wrong: list[Tensor] = []
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            found = wf(X, forget=1)
            if not torch.equal(found, expected):
                wrong.append(found)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(5):
            wf.verify(X)
    finally:
        stop.set()
        thread.join()
    assert not wrong


def test_nothing_is_left_behind() -> None:
    wf = modulate(Chain(6), example_input=X)
    before = wf.memory_state()
    wf.verify(X)
    layers = [layer for layer in wf.modules() if isinstance(layer, Modulated)]
    assert not any(layer._forward_hooks for layer in layers) and wf.state.probe is None
    assert all(torch.equal(before[name], memory) and memory.grad is None for name, memory in wf.named_memories())
