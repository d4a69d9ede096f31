"""memmod::modulate_output, the tail behind any library op: one pass forward; backward one pass that reads dy and y
once, writes dx and sums their products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from memmod.kernels.configs import architecture, line_config, row_config
from memmod.kernels.gates import GateTable, gate_table, table_gates, table_row
from memmod.kernels.sums import class_sums
from memmod.ops.layout import Channels, channels, laid_out, like


@triton.jit
def modulate_rows_kernel(
    x,
    other,
    bias,
    y,
    sums,
    table,
    rows,
    T,
    B,
    R,
    K,
    CHUNKS,
    CHUNK: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y = s ⊙ x (+ bias) for x [B, T, K], and sums [B, CHUNKS, K] of x ⊙ other (without other: of s ⊙ x) over CHUNK
    rows of a sample at a time. An absent operand is None."""
    i_b = tl.program_id(0) // CHUNKS
    i_chunk = tl.program_id(0) % CHUNKS
    o_b = i_b * BLOCK_B + tl.arange(0, BLOCK_B)
    o_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    m_b, m_k = o_b < B, o_k < K
    if table is not None:
        b_row = table_row(rows, o_b, B)
        b_gate = table_gates(table, b_row[:, None], o_k[None, :], m_k[None, :], R, K)[:, None, :]
    if bias is not None:
        b_bias = tl.load(bias + o_k, mask=m_k, other=0.0).to(tl.float32)[None, None, :]
    o_first = o_b.to(tl.int64) * T
    b_sum = tl.zeros((BLOCK_B, BLOCK_K), dtype=tl.float32)
    for i_t in range(0, CHUNK, BLOCK_T):
        o_t = i_chunk * CHUNK + i_t + tl.arange(0, BLOCK_T)
        o_row = o_first[:, None] + o_t[None, :]
        o = o_row[:, :, None] * K + o_k[None, None, :]
        m = m_b[:, None, None] & (o_t < T)[None, :, None] & m_k[None, None, :]
        b_x = tl.load(x + o, mask=m, other=0.0).to(tl.float32)
        b_y = b_x
        if table is not None:
            b_y = b_x * b_gate
        if sums is not None:
            b_term = b_y
            if other is not None:
                b_term = b_x * tl.load(other + o, mask=m, other=0.0).to(tl.float32)
            b_sum += tl.sum(b_term, axis=1)
        if bias is not None:
            b_y += b_bias
        if y is not None:
            tl.store(y + o, b_y.to(y.dtype.element_ty), mask=m)
    if sums is not None:
        o_sum = (o_b.to(tl.int64) * CHUNKS + i_chunk)[:, None] * K + o_k[None, :]
        tl.store(sums + o_sum, b_sum, mask=m_b[:, None] & m_k[None, :])


@triton.jit
def modulate_lines_kernel(
    x,
    other,
    bias,
    y,
    sums,
    table,
    rows,
    LINES,
    INNER,
    T,
    B,
    R,
    K,
    CHUNKS,
    CHUNK: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """The same for x [B·T, K, INNER], whose lines of INNER numbers have one gate each; sums [B·T, CHUNKS, K] over CHUNK
    numbers of a line at a time."""
    o_l = tl.program_id(0).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    i_chunk = tl.program_id(1)
    m_l = o_l < LINES
    o_row = o_l // K
    o_k = o_l - o_row * K
    if table is not None:
        b_row = table_row(rows, o_row // T, B)
        b_gate = table_gates(table, b_row, o_k, m_l, R, K)[:, None]
    if bias is not None:
        b_bias = tl.load(bias + o_k, mask=m_l, other=0.0).to(tl.float32)[:, None]
    b_sum = tl.zeros((BLOCK_L,), dtype=tl.float32)
    for i_i in range(0, CHUNK, BLOCK_I):
        o_i = i_chunk * CHUNK + i_i + tl.arange(0, BLOCK_I)
        o = o_l[:, None] * INNER + o_i[None, :]
        m = m_l[:, None] & (o_i < INNER)[None, :]
        b_x = tl.load(x + o, mask=m, other=0.0).to(tl.float32)
        b_y = b_x
        if table is not None:
            b_y = b_x * b_gate
        if sums is not None:
            b_term = b_y
            if other is not None:
                b_term = b_x * tl.load(other + o, mask=m, other=0.0).to(tl.float32)
            b_sum += tl.sum(b_term, axis=1)
        if bias is not None:
            b_y += b_bias
        if y is not None:
            tl.store(y + o, b_y.to(y.dtype.element_ty), mask=m)
    if sums is not None:
        tl.store(sums + (o_row * CHUNKS + i_chunk) * K + o_k, b_sum, mask=m_l)


def launch(
    x: Tensor,
    view: Channels,
    gates: GateTable | None,
    *,
    samples: int,
    other: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
    with_sums: bool = False,
) -> Tensor | None:
    """One pass over x: out = s ⊙ x (+ bias), and the sums ``[B, P, K]`` of x ⊙ other (of s ⊙ x without other)."""
    height, width, inner = view.rows // samples, view.width, view.inner
    table, rows, classes = (None, None, 0) if gates is None else (gates.table, gates.rows, gates.table.shape[0])
    arch = architecture(x.device)
    if inner == 1:
        config = row_config(height, width, x.dtype, arch, with_sums)
        chunks = triton.cdiv(height, config.chunk)
        sums = x.new_empty(samples, chunks, width, dtype=torch.float32) if with_sums else None
        grid = (triton.cdiv(samples, config.block_b) * chunks, triton.cdiv(width, config.block_k))
        modulate_rows_kernel[grid](
            x, other, bias, out, sums, table, rows, height, samples, classes, width, chunks, **config.launch()
        )
        return sums
    config = line_config(inner, arch)
    chunks = triton.cdiv(inner, config.chunk)
    lines = view.rows * width
    sums = x.new_empty(samples, height * chunks, width, dtype=torch.float32) if with_sums else None
    grid = (triton.cdiv(lines, config.block_l), chunks)
    modulate_lines_kernel[grid](
        x, other, bias, out, sums, table, rows, lines, inner, height, samples, classes, width, chunks, **config.launch()
    )
    return sums


def modulate(x: Tensor, gates: GateTable, dim: int, *, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """s ⊙ x (+ bias) along `dim`, in x's dtype and layout; `out` may be x itself."""
    view = channels(x, dim)
    x = laid_out(x, view)
    out = torch.empty_like(x) if out is None else out
    if x.numel():
        launch(x, view, gates, samples=gates.samples, bias=bias, out=out)
    return out


def sums_along(x: Tensor, gates: GateTable | None, dim: int) -> Tensor:
    """``[K]``: the sums of s ⊙ x over every dim but `dim`, in x's dtype, in an order that the shape fixes."""
    view = channels(x, dim)
    if x.numel() == 0:
        return x.new_zeros(view.width)
    samples = 1 if gates is None else gates.samples
    sums = launch(laid_out(x, view), view, gates, samples=samples, with_sums=True)
    return sums.sum((0, 1)).to(x.dtype)


# From this many numbers of a sample and channel on, their sum is written and read again; fewer are read twice.
SUMMED_FROM = 8


def memory_gradient(
    dy: Tensor,
    y: Tensor,
    memory: Tensor,
    index: Tensor,
    gate: str,
    dim: int,
    gates: GateTable | None = None,
) -> tuple[Tensor | None, Tensor]:
    """(s ⊙ dy with `gates`, else None; dα ``[C, K]``), reading dy and y once where a sample has many rows.

    y is the gated product (before its gate for the identity gate); both ``[k·B, …]`` with K channels at `dim`.
    """
    view = channels(dy, dim)
    dy, y = laid_out(dy, view), laid_out(y, view)
    dz = None if gates is None else torch.empty_like(dy)
    if dy.numel() == 0:
        return dz, torch.zeros_like(memory, memory_format=torch.contiguous_format)
    samples = index.shape[0]
    if view.inner == 1 and view.rows // samples < SUMMED_FROM:
        if dz is not None:
            launch(dy, view, gates, samples=samples, out=dz)
        return dz, class_sums(dy, y, memory, index, gate)
    sums = launch(dy, view, gates, samples=samples, other=y, out=dz, with_sums=True)
    return dz, class_sums(sums, None, memory, index, gate)


def modulate_output(
    x: Tensor, memory: Tensor, index: Tensor, dim: int, gate: str, keep_gated: bool
) -> tuple[Tensor, Tensor]:
    """(y, saved): y = s ⊙ x along `dim`, for x ``[k·B, …]`` whose `dim` has the memory's width."""
    y = like(x, modulate(x, gate_table(memory, index, gate), dim))
    return y, y.clone() if keep_gated else x.new_empty(0)


def modulate_output_backward(
    dy: Tensor, saved: Tensor | None, memory: Tensor, index: Tensor, dim: int, gate: str, needs: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """(dx, dmemory); `saved` is y, or x for the identity gate."""
    s = gate_table(memory, index, gate) if needs[0] else None
    if not needs[1]:
        return like(dy, modulate(dy, s, dim)) if needs[0] else dy.new_empty(0), memory.new_empty(0)
    dx, dmemory = memory_gradient(dy, saved, memory, index, gate, dim, gates=s)
    return dy.new_empty(0) if dx is None else like(dy, dx), dmemory
