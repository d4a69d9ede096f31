"""memmod::modulate_output, the tail behind any library op: one pass forward; backward one pass that reads dy and y
once, writes dx and sums their products."""

from __future__ import annotations

import torch
from torch import Tensor

from memmod.ops.backends.gpu.primitives import Gates, Primitives
from memmod.ops.calls import OutputCall, OutputGradCall
from memmod.ops.layout import channels, laid_out, like

# From this many rows of a sample on, their sum is written and read again; fewer are read twice.
SUMMED_FROM = 8


def modulate(
    kernels: Primitives,
    x: Tensor,
    gates: Gates | None,
    dim: int,
    *,
    bias: Tensor | None = None,
    bias_inside: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """s ⊙ x (+ bias) along `dim`, or s ⊙ (x + bias), in x's dtype and layout; `out` may be x itself."""
    view = channels(x, dim)
    x = laid_out(x, view)
    out = torch.empty_like(x) if out is None else out
    if x.numel():
        samples = 1 if gates is None else gates.samples
        kernels.one_pass(x, view, gates, samples=samples, bias=bias, bias_inside=bias_inside, out=out)
    return out


def sums_along(kernels: Primitives, x: Tensor, gates: Gates | None, dim: int) -> Tensor:
    """``[K]``: the sums of s ⊙ x over every dim but `dim`, in x's dtype, in an order that the shape fixes."""
    view = channels(x, dim)
    if x.numel() == 0:
        return x.new_zeros(view.width)
    samples = 1 if gates is None else gates.samples
    sums = kernels.one_pass(laid_out(x, view), view, gates, samples=samples, with_sums=True)
    return sums.sum((0, 1)).to(x.dtype)


def memory_gradient(
    kernels: Primitives, dy: Tensor, y: Tensor, gates: Gates, dim: int, *, with_dz: bool
) -> tuple[Tensor | None, Tensor]:
    """(s ⊙ dy if with_dz, else None; dα ``[C, K]``), reading dy and y once where a sample has many rows.

    y is the gated product (before its gate for the identity gate); both ``[k·B, …]`` with K channels at `dim`.
    """
    if dy.numel() == 0 or gates.memory.numel() == 0:
        return modulate(kernels, dy, gates, dim) if with_dz else None, torch.zeros_like(gates.memory)
    view = channels(dy, dim)
    dy, y = laid_out(dy, view), laid_out(y, view)
    dz = torch.empty_like(dy) if with_dz else None
    samples = gates.samples
    if view.inner == 1 and view.rows // samples < SUMMED_FROM:
        if dz is not None:
            kernels.one_pass(dy, view, gates, samples=samples, out=dz)
        return dz, kernels.class_sums(dy, y, gates)
    passed = gates if with_dz else None
    sums = kernels.one_pass(dy, view, passed, samples=samples, other=y, out=dz, with_sums=True)
    return dz, kernels.class_sums(sums, None, gates)


def modulate_output(kernels: Primitives, call: OutputCall) -> tuple[Tensor, Tensor]:
    """(y, saved): y = s ⊙ x along `dim`, for x ``[k·B, …]`` whose `dim` has the memory's width."""
    x = call.x
    y = like(x, modulate(kernels, x, kernels.gates(call.memory, call.index, call.gate), call.dim))
    return y, y.clone() if call.keep_gated else x.new_empty(0)


def modulate_output_backward(kernels: Primitives, call: OutputGradCall) -> tuple[Tensor, Tensor]:
    """(dx, dmemory); `saved` is y, or x for the identity gate."""
    dy, (need_dx, need_dmemory) = call.dy, call.needs
    gates = kernels.gates(call.memory, call.index, call.gate)
    if not need_dmemory:
        dx = like(dy, modulate(kernels, dy, gates, call.dim)) if need_dx else dy.new_empty(0)
        return dx, call.memory.new_empty(0)
    dx, dmemory = memory_gradient(kernels, dy, call.saved, gates, call.dim, with_dz=need_dx)
    return dy.new_empty(0) if dx is None else like(dy, dx), dmemory
