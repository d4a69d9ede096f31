"""The tail behind any library op: one pass that gates, adds a bias, and sums products by sample."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from memmod.kernels.configs import architecture, line_config, row_config
from memmod.kernels.gates import GateTable, table_gates, table_row
from memmod.ops.layout import Channels


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
    BIAS_INSIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y = s ⊙ x (+ bias) for x [B, T, K], or s ⊙ (x + bias), and sums [B, CHUNKS, K] of x ⊙ other (without other, of
    what is gated) over CHUNK rows of a sample at a time. An absent operand is None."""
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
        if BIAS_INSIDE:
            b_y += b_bias
        if table is not None:
            b_y *= b_gate
        if sums is not None:
            b_term = b_y
            if other is not None:
                b_term = b_x * tl.load(other + o, mask=m, other=0.0).to(tl.float32)
            b_sum += tl.sum(b_term, axis=1)
        if bias is not None and not BIAS_INSIDE:
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
    BIAS_INSIDE: tl.constexpr,
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
        if BIAS_INSIDE:
            b_y += b_bias
        if table is not None:
            b_y *= b_gate
        if sums is not None:
            b_term = b_y
            if other is not None:
                b_term = b_x * tl.load(other + o, mask=m, other=0.0).to(tl.float32)
            b_sum += tl.sum(b_term, axis=1)
        if bias is not None and not BIAS_INSIDE:
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
    bias_inside: bool = False,
    out: Tensor | None = None,
    with_sums: bool = False,
) -> Tensor | None:
    """One pass over x: out = s ⊙ x (+ bias), or s ⊙ (x + bias) where it is inside, and the sums ``[B, P, K]`` of
    x ⊙ other (without other, of what is gated)."""
    height, width, inner = view.rows // samples, view.width, view.inner
    table, rows, classes = (None, None, 0) if gates is None else (gates.table, gates.rows, gates.table.shape[0])
    arch, flags = architecture(x.device), {"BIAS_INSIDE": bias_inside}
    if inner == 1:
        config = row_config(height, width, x.dtype, arch, with_sums)
        chunks = triton.cdiv(height, config.chunk)
        sums = x.new_empty(samples, chunks, width, dtype=torch.float32) if with_sums else None
        grid = (triton.cdiv(samples, config.block_b) * chunks, triton.cdiv(width, config.block_k))
        modulate_rows_kernel[grid](
            x, other, bias, out, sums, table, rows, height, samples, classes, width, chunks, **flags, **config.launch()
        )
        return sums
    config = line_config(inner, arch)
    chunks = triton.cdiv(inner, config.chunk)
    lines = view.rows * width
    sums = x.new_empty(samples, height * chunks, width, dtype=torch.float32) if with_sums else None
    grid = (triton.cdiv(lines, config.block_l), chunks)
    sizes = (lines, inner, height, samples, classes, width, chunks)
    modulate_lines_kernel[grid](x, other, bias, out, sums, table, rows, *sizes, **flags, **config.launch())
    return sums
