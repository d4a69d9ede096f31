"""memmod::modulate_output by the CUDA C++ kernels (csrc/cuda/output.cu): the tail behind any library op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from memmod.ops.layout import Channels, channels, laid_out, like

GATES = {"sigmoid": 0, "identity": 1, "hard": 2}
# Rows, or numbers of a line, that one partial sum takes, counted from a sample's first: 4 bytes for 256 and more.
ROW_CHUNK, LINE_CHUNK = 64, 4096
# Numbers from which there are blocks enough if each takes ROW_CHUNK rows.
LARGE = 1 << 22
# From this many rows of a sample on, their sum is written and read again; fewer are read twice.
SUMMED_FROM = 8


class Selected(NamedTuple):
    """A memory and what each sample selects of it, as the kernels read them."""

    memory: Tensor
    """fp32 ``[C, K]``, contiguous"""
    index: Tensor
    """int64 ``[B]`` or ``[B, S]``, contiguous"""
    gate: int

    @property
    def samples(self) -> int:
        return self.index.shape[0]


def selected(memory: Tensor | None, index: Tensor, gate: str) -> Selected | None:
    """None without a memory."""
    return None if memory is None else Selected(memory.contiguous(), index.contiguous(), GATES[gate])


def one_pass(
    x: Tensor,
    view: Channels,
    gates: Selected | None,
    *,
    samples: int,
    other: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
    with_sums: bool = False,
) -> Tensor | None:
    """out = s ⊙ x (+ bias), and the sums ``[B, P, K]`` of x ⊙ other (of s ⊙ x without other)."""
    rows = view.rows // samples
    if view.inner > 1:
        chunk, parts = LINE_CHUNK, rows * -(-view.inner // LINE_CHUNK)
    else:
        chunk = ROW_CHUNK if with_sums or x.numel() >= LARGE else 8
        parts = -(-rows // chunk)
    sums = x.new_empty(samples, parts, view.width, dtype=torch.float32) if with_sums else None
    memory, index, gate = (None, None, 0) if gates is None else gates
    bias = None if bias is None else bias.contiguous()
    sizes = [samples, rows, view.width, view.inner, chunk]
    torch.ops.memmod_cuda.modulate.default(x, other, bias, out, sums, memory, index, gate, sizes)
    return sums


def modulate(
    x: Tensor, gates: Selected | None, dim: int, *, bias: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """s ⊙ x (+ bias) along `dim`, in x's dtype and layout; `out` may be x itself."""
    view = channels(x, dim)
    x = laid_out(x, view)
    out = torch.empty_like(x) if out is None else out
    if x.numel():
        one_pass(x, view, gates, samples=1 if gates is None else gates.samples, bias=bias, out=out)
    return out


def sums_along(x: Tensor, gates: Selected | None, dim: int) -> Tensor:
    """``[K]``: the sums of s ⊙ x over every dim but `dim`, in x's dtype, in an order that the shape fixes."""
    view = channels(x, dim)
    if x.numel() == 0:
        return x.new_zeros(view.width)
    samples = 1 if gates is None else gates.samples
    sums = one_pass(laid_out(x, view), view, gates, samples=samples, with_sums=True)
    return sums.sum((0, 1)).to(x.dtype)


def memory_gradient(dy: Tensor, y: Tensor, gates: Selected, dim: int, *, with_dz: bool) -> tuple[Tensor | None, Tensor]:
    """(s ⊙ dy if with_dz, else None; dα ``[C, K]``), reading dy and y once where a sample has many rows.

    y is the gated product (before its gate for the identity gate); both ``[k·B, …]`` with K channels at `dim`.
    """
    view = channels(dy, dim)
    dy, y = laid_out(dy, view), laid_out(y, view)
    dz = torch.empty_like(dy) if with_dz else None
    dmemory = torch.empty_like(gates.memory)
    if dy.numel() == 0:
        return dz, dmemory.zero_()
    if dmemory.numel() == 0:
        return modulate(dy, gates, dim) if with_dz else None, dmemory
    samples, rows = gates.samples, view.rows // gates.samples
    if view.inner == 1 and rows < SUMMED_FROM:
        if dz is not None:
            one_pass(dy, view, gates, samples=samples, out=dz)
        sums, other, parts = dy, y, rows
    else:
        passed = gates if with_dz else None
        sums = one_pass(dy, view, passed, samples=samples, other=y, out=dz, with_sums=True)
        other, parts = None, sums.shape[1]
    torch.ops.memmod_cuda.class_sums.default(sums, other, dmemory, *gates, parts)
    return dz, dmemory


def modulate_output(
    x: Tensor, memory: Tensor, index: Tensor, dim: int, gate: str, keep_gated: bool
) -> tuple[Tensor, Tensor]:
    """(y, saved): y = s ⊙ x along `dim`, for x ``[k·B, …]`` whose `dim` has the memory's width."""
    y = like(x, modulate(x, selected(memory, index, gate), dim))
    return y, y.clone() if keep_gated else x.new_empty(0)


def modulate_output_backward(
    dy: Tensor, saved: Tensor | None, memory: Tensor, index: Tensor, dim: int, gate: str, needs: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """(dx, dmemory); `saved` is y, or x for the identity gate."""
    gates = selected(memory, index, gate)
    if not needs[1]:
        return like(dy, modulate(dy, gates, dim)) if needs[0] else dy.new_empty(0), memory.new_empty(0)
    dx, dmemory = memory_gradient(dy, saved, gates, dim, with_dz=needs[0])
    return dy.new_empty(0) if dx is None else like(dy, dx), dmemory
