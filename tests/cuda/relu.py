"""A ReLU in the pass over a layer's output, forward and backward: what the kernel alone gives, and one behind it."""

from __future__ import annotations

import torch
from torch import Tensor

from memmod.ops.backends.cuda.primitives import CUDA, GATES, LINE_CHUNK, ROW_CHUNK
from memmod.ops.backends.gpu.primitives import Gates
from memmod.ops.layout import channels
from tests.ops.problems import Problem


def one_pass(
    x: Tensor,
    gates: Gates,
    dim: int,
    *,
    other: Tensor | None = None,
    bias: Tensor | None = None,
    with_sums: bool = False,
    relu: bool,
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
    torch.ops.memmod_cuda.modulate.default(x, other, bias, y, sums, *selection, relu, sizes)
    return y, sums


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
