"""Gates, their products, and the sums behind a memory's gradient."""

from __future__ import annotations

import pytest
import torch

from memmod.errors import SelectionError
from memmod.ops.gating import gates, sigmoid
from memmod.ops.layout import conv_memory_format
from memmod.ops.memory_gradient import sums_of_products
from tests.ops.backends import backends
from tests.ops.bounds import naive_gates
from tests.ops.problems import PATTERNS, select


@pytest.mark.parametrize("gate", ["sigmoid", "identity", "hard"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("classes", [7, 40])
def test_gates_are_the_products_over_the_distinct_classes(pattern, gate, classes):
    g = torch.Generator().manual_seed(0)
    memory = torch.randn(classes, 33, generator=g, dtype=torch.float64)
    index = select(pattern, 6, classes, g)
    expected = naive_gates(memory, index, gate, index.shape[0])
    torch.testing.assert_close(gates(memory, index, gate), expected, rtol=1e-14, atol=0)


def test_gates_are_wide_whatever_else_is_narrow():
    index = torch.tensor([0, -1])
    assert gates(torch.randn(3, 4), index, "sigmoid").dtype == torch.float32
    assert gates(torch.randn(3, 4).double(), index, "sigmoid").dtype == torch.float64


def test_closed_and_open_gates_are_exact():
    memory = torch.tensor([[-1000.0, 1000.0]])
    assert gates(memory, torch.tensor([0, -1]), "sigmoid").tolist() == [[0.0, 1.0], [1.0, 1.0]]


def test_sigmoid_in_blocks_is_sigmoid():
    memory = torch.randn(7, 40_001, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sigmoid(memory), torch.sigmoid(memory), rtol=1e-6, atol=0)
    assert sigmoid(memory.t()).shape == (40_001, 7)


@pytest.mark.parametrize("shape", [(4, 100, 30), (2, 3, 50, 60), (4, 1, 1, 2000), (3, 2000), (6, 5, 7, 3)])
@pytest.mark.parametrize("dim", [1, -1])
@pytest.mark.parametrize("block", [1, 100, 5000, 1 << 20])
def test_sums_of_products_in_blocks_of_any_size(shape, dim, block, monkeypatch):
    monkeypatch.setattr("memmod.ops.memory_gradient.BLOCK", block)
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
    exact = a.double() * b.double()
    kept = dim % len(shape)
    expected = exact.transpose(1, kept).flatten(2).sum(2) if len(shape) > 2 else exact
    got = sums_of_products(a, b, dim, shape[0], torch.float32)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [3, 3000])
def test_products_of_low_precision_are_exact_and_their_sums_wide(dtype, rows):
    g = torch.Generator().manual_seed(0)
    a, b = (1000 * torch.randn(2, rows, 65, generator=g).to(dtype) for _ in range(2))
    got = sums_of_products(a, b, -1, 2, torch.float32)
    exact = (a.double() * b.double()).sum(1)
    scale = (a.double() * b.double()).abs().sum(1)
    assert ((got.double() - exact).abs() <= 1e-6 * scale).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", [1, 1000, 1 << 20])
@pytest.mark.parametrize("backend", backends("modulate_output"), indirect=True)
def test_low_precision_is_multiplied_by_wide_gates_and_rounded_once(backend, dtype, block, monkeypatch):
    monkeypatch.setattr("memmod.ops.gating.BLOCK", block)
    rows = 31
    g = torch.Generator().manual_seed(0)
    x, memory = torch.randn(4, rows, 65, generator=g).to(dtype), torch.randn(3, 65, generator=g)
    y, _ = torch.ops.memmod.modulate_output.default(x, memory, torch.tensor([2, -1, 0, 1]), -1, "identity", False)
    s = torch.stack((memory[2], torch.ones(65), memory[0], memory[1])).unsqueeze(1)
    assert torch.equal(y, (x.float() * s).to(dtype))


@pytest.mark.parametrize("backend", backends("modulate_output_backward"), indirect=True)
def test_gradients_of_nearly_open_gates_keep_their_digits(backend):
    memory = torch.linspace(8, 30, 65).unsqueeze(0)
    x = torch.randn(4, 65, generator=torch.Generator().manual_seed(0))
    _, dmemory = torch.ops.memmod.modulate_output_backward.default(
        torch.ones_like(x), x, memory, torch.zeros(4, dtype=torch.int64), -1, "sigmoid", [False, True]
    )
    expected = torch.sigmoid(-memory[0].double()) * x.double().sum(0)
    torch.testing.assert_close(dmemory[0].double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("wrong", "named"), [(7, "class 7"), (-2, "class -2"), (2**40, "class 1099511627776")])
@pytest.mark.parametrize("dims", [1, 2])
def test_a_class_out_of_range_is_an_error_inside_the_op(wrong, named, dims):
    memory, index = torch.randn(7, 5), torch.tensor([0, wrong, -1])
    index = index if dims == 1 else index.unsqueeze(1)
    x = torch.randn(3, 5)
    calls = [
        lambda: torch.ops.memmod.modulate_output.default(x, memory, index, 1, "sigmoid", False),
        lambda: torch.ops.memmod.modulated_linear.default(
            x, torch.randn(5, 5), None, None, memory, index, "sigmoid", True, False
        ),
    ]
    for call in calls:
        with pytest.raises(SelectionError, match=f"{named} was selected, but the memory has 7 classes"):
            call()


@pytest.mark.parametrize(
    "t",
    [
        torch.randn(2, 3, 4, 5),
        torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)[:, :, ::2],
        torch.randn(2, 3, 1, 1),
        torch.randn(2, 3, 1, 1).contiguous(memory_format=torch.channels_last),
        torch.randn(2, 1, 1, 1),
        torch.randn(2, 1, 4, 5),
        torch.randn(2, 1, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.randn(2, 3, 4, 5).transpose(1, 3),
        torch.randn(1).expand(2, 3, 4, 5),
        torch.randn(2, 0, 4, 5),
    ],
    ids=lambda t: f"{tuple(t.shape)}@{t.stride()}",
)
def test_memory_format_is_what_the_library_chooses(t):
    assert conv_memory_format(t) == torch._prims_common.suggest_memory_format(t)
