"""Gates on the device: a table of multipliers made once per call, and the rows of it that a tile of a product needs."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def multiplier(b_alpha, GATE: tl.constexpr):
    if GATE == "sigmoid":
        b_alpha = tl.sigmoid(b_alpha)
    elif GATE == "hard":
        b_alpha = (b_alpha > 0).to(tl.float32)
    return b_alpha


@triton.jit
def class_table_kernel(memory, table, size, GATE: tl.constexpr, BLOCK: tl.constexpr):
    """table = s(memory), both [C, K] as `size` numbers."""
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m = o < size
    b_alpha = tl.load(memory + o, mask=m, other=0.0)
    tl.store(table + o, multiplier(b_alpha, GATE), mask=m)


@triton.jit
def sample_table_kernel(
    memory, index, table, C, K, S, GATE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr
):
    """table [B, K]: the product of the gates of each sample's distinct classes; memory [C, K], index [B, S]."""
    i_b = tl.program_id(0).to(tl.int64)
    o_k = tl.program_id(1).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    m_k = o_k < K
    o_s = tl.arange(0, BLOCK_S)
    b_classes = tl.load(index + i_b * S + o_s, mask=o_s < S, other=-1)
    b_product = tl.full((BLOCK_K,), 1.0, tl.float32)
    for i_s in range(S):
        b_class = tl.sum(tl.where(o_s == i_s, b_classes, 0))
        repeated = tl.sum(((b_classes == b_class) & (o_s < i_s)).to(tl.int32)) > 0
        known = (b_class >= 0) & (b_class < C)
        b_alpha = tl.load(memory + b_class * K + o_k, mask=m_k & known, other=0.0)
        b_gate = tl.where(known, multiplier(b_alpha, GATE), float("nan"))
        b_product = tl.where((b_class == -1) | repeated, b_product, b_product * b_gate)
    tl.store(table + i_b * K + o_k, b_product, mask=m_k)


@triton.jit
def table_row(rows, o_b, B):
    """The row of the table that holds sample o_b's gates; -1 for none (all 1, and beyond the last sample)."""
    m_b = o_b < B
    if rows is not None:
        b_row = tl.load(rows + o_b, mask=m_b, other=-1)
    else:
        b_row = tl.where(m_b, o_b, -1).to(tl.int64)
    return b_row


@triton.jit
def table_gates(table, b_row, o_k, m_k, R, K):
    """table[b_row, o_k], the two broadcast against each other; 1 in row -1, NaN in a row that is not in the table."""
    m_row = (b_row >= 0) & (b_row < R)
    b_gate = tl.load(table + b_row * K + o_k, mask=m_row & m_k, other=1.0)
    return tl.where((b_row < -1) | (b_row >= R), float("nan"), b_gate)


@triton.jit
def tile_rows(rows, o_m, i_first, T, B, PAIR: tl.constexpr):
    """The table rows of a tile whose rows o_m start at i_first: (those of all rows, unused, unused), or if PAIR (T >=
    the tile's height, so that it touches at most two samples) (the first sample's, the second's, which rows are the
    first's)."""
    if PAIR:
        i_b = i_first // T
        b_row = table_row(rows, i_b, B)
        b_next = table_row(rows, i_b + 1, B)
        m_first = o_m < (i_b + 1) * T
    else:
        b_row = table_row(rows, o_m // T, B)
        # A tuple of a compiled kernel cannot hold None.
        b_next = b_row
        m_first = o_m < 0
    return b_row, b_next, m_first


@triton.jit
def tile_gates(table, b_row, b_next, m_first, o_k, m_k, R, K, PAIR: tl.constexpr):
    """[tile's rows, o_k] multipliers, from what `tile_rows` returned."""
    if PAIR:
        b_first = table_gates(table, b_row, o_k, m_k, R, K)
        b_second = table_gates(table, b_next, o_k, m_k, R, K)
        b_gate = tl.where(m_first[:, None], b_first[None, :], b_second[None, :])
    else:
        b_gate = table_gates(table, b_row[:, None], o_k[None, :], m_k[None, :], R, K)
    return b_gate


class GateTable(NamedTuple):
    """Multipliers, and where each sample finds its own."""

    table: Tensor
    """``[R, K]`` fp32"""
    rows: Tensor | None
    """int64 ``[B]``: the sample's row, -1 for none; None: sample b has row b"""
    samples: int
    """B"""


# Numbers and channels that one program of the table kernels makes; the table is small beside any layer's operands.
BLOCK = 1024
BLOCK_K = 256


def gate_table(memory: Tensor | None, index: Tensor, gate: str) -> GateTable | None:
    """The gates of memory ``[C, K]`` for index ``[B]`` or ``[B, S]``, by class or by sample, whichever is smaller.

    None without a memory. A class out of range gives NaN, -1 gives 1.
    """
    if memory is None:
        return None
    memory, index = memory.contiguous(), index.contiguous()
    samples, (classes, width) = index.shape[0], memory.shape
    if index.dim() == 1 and classes <= samples:
        table = torch.empty_like(memory)
        if table.numel():
            grid = (triton.cdiv(table.numel(), BLOCK),)
            class_table_kernel[grid](memory, table, table.numel(), GATE=gate, BLOCK=BLOCK)
        return GateTable(table, index, samples)
    table = memory.new_empty(samples, width)
    if table.numel():
        sets = index.numel() // samples
        block = min(BLOCK_K, triton.next_power_of_2(width))
        grid = (samples, triton.cdiv(width, block))
        sample_table_kernel[grid](
            memory,
            index,
            table,
            classes,
            width,
            sets,
            GATE=gate,
            BLOCK_S=triton.next_power_of_2(max(1, sets)),
            BLOCK_K=block,
        )
    return GateTable(table, None, samples)
