"""The pass over a layer's output by the kernel alone: its bias, inside of the gates and outside, against fp64; and its
ReLU, forward and backward, against one behind it."""

from __future__ import annotations

import torch
from torch import Tensor

from memmod.ops.backends.cuda.primitives import CUDA, GATES, LINE_CHUNK, ROW_CHUNK
from memmod.ops.backends.gpu.primitives import Gates
from memmod.ops.gating import gates as multipliers
from memmod.ops.layout import channels
from tests.ops.problems import Problem


def one_pass(
    x: Tensor,
    gates: Gates,
    dim: int,
    *,
    other: Tensor | None = None,
    bias: Tensor | None = None,
    bias_inside: bool = False,
    with_sums: bool = False,
    relu: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """(y, sums) of the kernel for a contiguous x."""
    view = channels(x, dim)
    rows = view.rows // gates.samples
    chunk = LINE_CHUNK if view.inner > 1 else ROW_CHUNK
    parts = rows * -(-view.inner // chunk) if view.inner > 1 else -(-rows // chunk)
    y = torch.full_like(x, torch.nan)
    sums = torch.full((gates.samples, parts, view.width), torch.nan) if with_sums else None
    selection = (gates.memory, gates.index, GATES[gates.gate])
    sizes = [gates.samples, rows, view.width, view.inner, chunk]
    torch.ops.memmod_cuda.modulate.default(x, other, bias, y, sums, *selection, bias_inside, relu, sizes)
    return y, sums


def assert_bias(problem: Problem) -> None:
    """s (x + bias) and s x + bias, rounded once, with and without a ReLU, and the sums of what is gated."""
    x, dim = problem.x, problem.dim
    gates = CUDA.gates(problem.memory, problem.index, problem.gate)
    # Larger than x, so that the two differ.
    bias = torch.linspace(-3, 3, problem.memory.shape[1]).to(x.dtype)
    along = [1] * x.dim()
    along[dim] = -1
    s = multipliers(problem.memory, problem.index, problem.gate).double()
    s = s.view(s.shape[0], *along[1:]).repeat_interleave(x.shape[0] // s.shape[0], 0)
    wide, b = x.double(), bias.double().view(along)
    eps = torch.finfo(torch.float32).eps
    for inside in (True, False):
        gated = s * (wide + b) if inside else s * wide
        expected = gated if inside else gated + b
        # One rounding to x's dtype, and in fp32 those of the gate, which has an exponential, and of each operation.
        terms = s * (wide.abs() + b.abs()) if inside else s * wide.abs() + b.abs()
        bound = torch.finfo(x.dtype).eps / 2 * expected.abs() + 8 * eps * terms
        y, sums = one_pass(x, gates, dim, bias=bias, bias_inside=inside, with_sums=True)
        for got in (y, one_pass(x, gates, dim, bias=bias, bias_inside=inside)[0]):
            assert ((got.double() - expected).abs() <= bound).all(), f"a bias with {inside=} gives another y"
        others = [d for d in range(1, x.dim()) if d != dim % x.dim()]
        by_sample = (len(gates.index), -1, sums.shape[-1])
        total = gated.sum(others).view(by_sample).sum(1)
        most = gated.abs().sum(others).view(by_sample).sum(1)
        # A thread adds up to 128 numbers, and is added to by others in a few steps.
        close = (sums.double().sum(1) - total).abs() <= (128 / 2 + 16) * eps * most
        assert close.all(), f"a bias with {inside=} gives another sum"
        assert torch.equal(one_pass(x, gates, dim, bias=bias, bias_inside=inside, relu=True)[0], y.relu()), (
            f"a ReLU inside gives another y with {inside=}"
        )


def assert_relu(problem: Problem) -> None:
    """A ReLU inside equals one outside: of the output, of its gradient, and of the sums of their products."""
    gates, dim = CUDA.gates(problem.memory, problem.index, problem.gate), problem.dim
    bias = torch.linspace(-1, 1, problem.memory.shape[1]).to(problem.x.dtype)
    # NaN passes.
    x = problem.x.clone()
    x.view(-1)[5] = torch.nan
    y, _ = one_pass(x, gates, dim, bias=bias, relu=True)
    outside, _ = one_pass(x, gates, dim, bias=bias, relu=False)
    _equal("y", y, outside.relu())
    assert (y == 0).any() and (y > 0).any()
    # What does not pass is not read, whatever it is.
    dy = problem.dy.clone()
    stopped = (y == 0).view(-1).nonzero().view(-1)
    dy.view(-1)[stopped[::2]] = torch.inf
    dy.view(-1)[stopped[1::2]] = torch.nan
    passed = torch.ops.aten.threshold_backward(dy, y, 0)
    for with_sums in (False, True):
        dz, sums = one_pass(dy, gates, dim, other=y, with_sums=with_sums, relu=True)
        expected_dz, expected_sums = one_pass(passed, gates, dim, other=y, with_sums=with_sums, relu=False)
        _equal("dz", dz, expected_dz)
        if with_sums:
            _equal("sums", sums, expected_sums)


def _equal(name: str, got: Tensor, expected: Tensor) -> None:
    assert torch.equal(got.nan_to_num(nan=-7), expected.nan_to_num(nan=-7)), f"a ReLU inside gives another {name}"
