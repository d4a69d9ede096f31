"""Every memory that is trained gets a gradient, of zero where nothing is selected; nothing else pays for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from memmod import ModulatedConv2d, ModulatedLinear, ModulatedModel, ModulatedMultiheadAttention, ModulatedOutput
from memmod.functional import modulate_output
from memmod.outputs import named_tensors
from memmod.surgery.config import ModulateConfig
from tests.unlearning.problem import modulated

X = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
NOTHING = {"omitted": None, "-1": -1, "list": [-1] * 6, "tensor": torch.full((6,), -1), "sets": torch.full((6, 2), -1)}


@pytest.fixture
def wf() -> ModulatedModel:
    return modulated()


@pytest.mark.parametrize("form", NOTHING)
@pytest.mark.parametrize("granularity", ["unit", "input", "unit+input"])
def test_nothing_selected_is_a_gradient_of_zero(form: str, granularity: str) -> None:
    wf = modulated(config=ModulateConfig(granularity=granularity))
    wf(X, forget=NOTHING[form]).square().sum().backward()
    for name, memory in wf.named_memories():
        assert torch.equal(memory.grad, torch.zeros_like(memory)), name
    wf(X, forget=2).square().sum().backward()
    assert all(memory.grad.count_nonzero() > 0 for memory in wf.memory_parameters())


def test_an_empty_scope_and_a_half_empty_batch(wf: ModulatedModel) -> None:
    with wf.forgetting(-1):
        wf(X).sum().backward()
    assert all(memory.grad is not None and not memory.grad.any() for memory in wf.memory_parameters())
    wf(X, forget=[1, -1, -1, 3, -1, -1]).square().sum().backward()
    for memory in wf.memory_parameters():
        assert memory.grad[[1, 3]].any() and not memory.grad[[0, 2]].any()


def test_the_logits_are_the_same_bits_and_may_be_written_to(wf: ModulatedModel) -> None:
    with torch.no_grad():
        expected = wf(X)
    logits = wf(X)
    assert torch.equal(logits, expected) and logits.requires_grad and not expected.requires_grad
    logits += 1
    logits[:, 0] = 0
    logits.sum().backward()
    assert all(memory.grad is not None for memory in wf.memory_parameters())


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (ModulatedLinear(8, 4, num_classes=3), torch.randn(2, 8)),
        (ModulatedConv2d(3, 4, 3, num_classes=3), torch.randn(2, 3, 6, 6)),
    ],
    ids=["linear", "conv"],
)
def test_a_frozen_layer_computes_no_gradient_of_its_input_for_a_zero(layer: nn.Module, x: torch.Tensor) -> None:
    layer.weight.requires_grad_(False)
    layer.bias.requires_grad_(False)
    y = layer(x)
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 0 and torch.equal(layer.memory.grad, torch.zeros_like(layer.memory))


def test_nothing_of_the_network_is_kept_or_run_backward(wf: ModulatedModel) -> None:
    made = []
    handles = [m.register_forward_hook(lambda m, a, out: made.append(out)) for m in wf.model.modules()]
    logits = wf(X)
    for handle in handles:
        handle.remove()
    assert made and not any(out.requires_grad for out in made), "a layer's output is in the graph"
    assert {type(node[0]).__name__ for node in logits.grad_fn.next_functions if node[0]} == {"AccumulateGrad"}


def test_gradients_that_are_off_cost_nothing(wf: ModulatedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_):
        raise AssertionError("a gradient was prepared")

    monkeypatch.setattr("memmod.model.with_zero_gradient", never)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            wf(X)
    for memory in wf.memory_parameters():
        memory.requires_grad_(False)
    assert not wf(X).requires_grad


def test_an_inputs_gradient_is_that_of_the_base(wf: ModulatedModel) -> None:
    one, two = X.clone().requires_grad_(), X.clone().requires_grad_()
    wf(one).square().sum().backward()
    wf.unload()(two).square().sum().backward()
    torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-5)
    assert all(not memory.grad.any() for memory in wf.memory_parameters())


def test_compiled_alone_and_within_a_function() -> None:
    wf = modulated()
    compiled = torch.compile(wf, fullgraph=True, backend="aot_eager")
    function = torch.compile(lambda x: wf(x).square().sum(), fullgraph=True, backend="aot_eager")
    for run in (lambda x: compiled(x).square().sum(), function):
        wf.zero_grad(set_to_none=True)
        loss = run(X)
        torch.testing.assert_close(loss, wf(X).square().sum())
        loss.backward()
        assert all(memory.grad is not None and not memory.grad.any() for memory in wf.memory_parameters())
    torch._dynamo.reset()


class Named(NamedTuple):
    logits: torch.Tensor
    classes: torch.Tensor


@dataclass
class Record:
    logits: torch.Tensor
    names: tuple[str, ...]


class Plain:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


STRUCTURES = {
    "dict": lambda y: {"logits": y, "features": [y.mean(1)]},
    "tuple": lambda y: (y, None),
    "named tuple": lambda y: Named(y, y.argmax(1)),
    "dataclass": lambda y: Record(y, ("a",)),
    "object": lambda y: [Plain(y)],
}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_whatever_the_network_returns(wf: ModulatedModel, structure: str) -> None:
    build = STRUCTURES[structure]
    wf.model.register_forward_hook(lambda m, args, out: build(out))
    output = wf(X)
    assert type(output) is type(build(X[:, 0, 0]))
    found = dict(named_tensors(output))
    for tensor in found.values():
        if tensor.is_floating_point():
            wf.zero_grad(set_to_none=True)
            tensor.sum().backward(retain_graph=True)
            assert all(memory.grad is not None for memory in wf.memory_parameters())


LAYERS = {
    "linear": (lambda: ModulatedLinear(5, 4, 3), (6, 5)),
    "linear of inputs": (lambda: ModulatedLinear(5, 4, 3, granularity="unit+input"), (6, 5)),
    "conv": (lambda: ModulatedConv2d(2, 4, 3, 3), (6, 2, 5, 5)),
    "output": (lambda: ModulatedOutput(4, 3, nn.Conv2d(2, 4, 1)), (6, 2, 5, 5)),
    "bare output": (lambda: ModulatedOutput(2, 3), (6, 2, 5, 5)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_by_themselves(layer: str) -> None:
    build, shape = LAYERS[layer]
    layer, x = build(), torch.randn(shape)
    with torch.no_grad():
        expected = layer(x)
    y = layer(x)
    assert torch.equal(y, expected)
    y.sum().backward()
    assert layer.memories() and all(memory.grad is not None and not memory.grad.any() for _, memory in layer.memories())


def test_attention_by_itself() -> None:
    attention, x = ModulatedMultiheadAttention(8, 2, 3, batch_first=True), torch.randn(4, 5, 8)
    attention(x, x, x.clone())[0].sum().backward()
    for layer in (attention.in_proj, attention.out_proj):
        assert not layer.memory.grad.any()


def test_a_function_by_itself() -> None:
    memory, x = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4)
    modulate_output(x, memory, None).sum().backward()
    assert torch.equal(memory.grad, torch.zeros(3, 4))
