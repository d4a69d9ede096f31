"""The ops in ATen operators equal the reference, for every option; a class out of range gives NaN."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from memmod.export import decompositions as table
from memmod.export.aten import modulate_output, modulated_conv2d, modulated_linear
from memmod.ops.backends import reference
from memmod.ops.calls import ConvCall, LinearCall, OutputCall

CLASSES = 4
SELECTIONS = {
    "single": torch.tensor([3, -1, 0]),
    "nothing": torch.tensor([-1, -1, -1]),
    "sets": torch.tensor([[1, 2], [0, 0], [-1, 3]]),
    "sets of one": torch.tensor([[1], [-1], [3]]),
    "sets of none": torch.empty(3, 0, dtype=torch.int64),
}
OPTIONS = list(itertools.product(("sigmoid", "identity", "hard"), (True, False), (True, False)))


def draws(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("memories", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("rows", [3, 6])
def test_linear(selection: str, memories: tuple[bool, bool], rows: int) -> None:
    torch.manual_seed(0)
    x, weight, bias = draws(rows, 5, 7), draws(6, 7), draws(6)
    memory, input_memory = draws(CLASSES, 6) if memories[0] else None, draws(CLASSES, 7) if memories[1] else None
    for gate, gate_bias, keep in OPTIONS:
        for b in (bias, None):
            call = LinearCall(x, weight, b, memory, input_memory, SELECTIONS[selection], gate, gate_bias, keep)
            assert_same(modulated_linear(*call), reference.modulated_linear(call))


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("groups", [1, 2])
def test_conv2d(selection: str, groups: int) -> None:
    torch.manual_seed(0)
    x, weight, bias = draws(6, 4, 9, 7), draws(8, 4 // groups, 3, 3), draws(8)
    memory, input_memory = draws(CLASSES, 8), draws(CLASSES, 4)
    for gate, gate_bias, keep in OPTIONS:
        for m_in in (input_memory, None):
            options = (SELECTIONS[selection], gate, gate_bias, keep, [2, 1], [1, 0], [1, 2], groups)
            call = ConvCall(x, weight, bias, memory, m_in, *options)
            assert_same(modulated_conv2d(*call), reference.modulated_conv2d(call))


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize(("shape", "dim"), [((6, 5, 4, 4), 1), ((6, 4, 5), -1), ((3, 4, 5), 2), ((3, 5), 1)])
def test_output(selection: str, shape: tuple[int, ...], dim: int) -> None:
    torch.manual_seed(0)
    for gate, keep in itertools.product(("sigmoid", "identity", "hard"), (True, False)):
        call = OutputCall(draws(*shape), draws(CLASSES, 5), SELECTIONS[selection], dim, gate, keep)
        assert_same(modulate_output(*call), reference.modulate_output(call))


@pytest.mark.parametrize("wrong", [CLASSES, CLASSES + 1, -2, 2**40])
@pytest.mark.parametrize("sets", [False, True])
def test_a_class_out_of_range_is_nan_for_its_sample_alone(wrong: int, sets: bool) -> None:
    index = torch.tensor([1, wrong, -1])
    index = torch.stack((index, torch.zeros_like(index)), 1) if sets else index
    call = LinearCall(draws(6, 7), draws(6, 7), None, draws(CLASSES, 6), None, index, "sigmoid", True, False)
    y = modulated_linear(*call)[0]
    assert y[2:4].isnan().all() and not y[[0, 1, 4, 5]].isnan().any()


def test_low_precision_keeps_its_dtype() -> None:
    x, weight = draws(3, 7).bfloat16(), draws(6, 7).bfloat16()
    call = LinearCall(x, weight, None, draws(CLASSES, 6).float(), None, torch.tensor([1, -1, 0]), "sigmoid", True, True)
    for found, expected in zip(modulated_linear(*call), reference.modulated_linear(call), strict=True):
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, expected)


def test_every_forward_op_has_one() -> None:
    forward = {name for name in dir(torch.ops.memmod) if name.startswith("modulate") and not name.endswith("_backward")}
    assert {op._overloadpacket.__name__ for op in table()} == forward
