"""A linear layer's product with the gates of the inputs in its prologue and those of the units in its epilogue; the
gradient of x is the same product with the two exchanged."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from memmod.kernels.configs import MatmulConfig, architecture, matmul_config, programs
from memmod.kernels.gates import GateTable, tile_gates, tile_rows


@triton.jit
def modulated_matmul_kernel(
    a,
    b,
    bias,
    y,
    saved,
    in_table,
    in_rows,
    out_table,
    out_rows,
    M,
    N,
    K,
    T,
    B,
    R_IN,
    R_OUT,
    B_COLUMNS: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    SAVE_UNGATED: tl.constexpr,
    PAIR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """y [M, N] = s_out ⊙ ((s_in ⊙ a) b + bias), a [M, K], b [K, N] (stored [N, K] if B_COLUMNS); row m belongs to
    sample m // T. An absent operand is None. saved: s_out ⊙ (…), or (…) alone."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    for i_tile in range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        # GROUP_M tiles of rows at a time: their rows of a, and the columns of b in use, stay in the cache.
        i_group = i_tile // (GROUP_M * tiles_n)
        group = min(tiles_m - i_group * GROUP_M, GROUP_M)
        i_in_group = i_tile - i_group * GROUP_M * tiles_n
        i_m = i_group * GROUP_M + i_in_group % group
        i_n = i_in_group // group

        o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
        o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
        o_k = tl.arange(0, BLOCK_K)
        m_m, m_n = o_m < M, o_n < N
        p_a = a + o_m.to(tl.int64)[:, None] * K + o_k[None, :]
        if B_COLUMNS:
            p_b = b + o_n.to(tl.int64)[None, :] * K + o_k[:, None]
        else:
            p_b = b + o_k.to(tl.int64)[:, None] * N + o_n[None, :]
        if in_table is not None:
            b_row, b_next, m_first = tile_rows(in_rows, o_m, i_m * BLOCK_M, T, B, PAIR)

        b_z = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for i_k in range(0, K, BLOCK_K):
            m_k = o_k < K - i_k
            b_a = tl.load(p_a, mask=m_m[:, None] & m_k[None, :], other=0.0)
            b_b = tl.load(p_b, mask=m_k[:, None] & m_n[None, :], other=0.0)
            if in_table is not None:
                b_s = tile_gates(in_table, b_row, b_next, m_first, i_k + o_k, m_k, R_IN, K, PAIR)
                b_a = (b_a * b_s).to(b_a.dtype)
            b_z = tl.dot(b_a, b_b, b_z, input_precision=PRECISION)
            p_a += BLOCK_K
            if B_COLUMNS:
                p_b += BLOCK_K
            else:
                p_b += BLOCK_K * tl.cast(N, tl.int64)

        m_y = m_m[:, None] & m_n[None, :]
        o_y = o_m.to(tl.int64)[:, None] * N + o_n[None, :]
        if bias is not None:
            b_bias = tl.load(bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
            if GATE_BIAS:
                b_z += b_bias
        b_y = b_z
        if out_table is not None:
            b_row, b_next, m_first = tile_rows(out_rows, o_m, i_m * BLOCK_M, T, B, PAIR)
            b_y = b_z * tile_gates(out_table, b_row, b_next, m_first, o_n, m_n, R_OUT, N, PAIR)
        if saved is not None:
            b_saved = b_z if SAVE_UNGATED else b_y
            tl.store(saved + o_y, b_saved.to(saved.dtype.element_ty), mask=m_y)
        if bias is not None:
            if not GATE_BIAS:
                b_y += b_bias
        tl.store(y + o_y, b_y.to(y.dtype.element_ty), mask=m_y)


def matmul(
    a: Tensor,
    b: Tensor,
    y: Tensor,
    *,
    b_columns: bool,
    bias: Tensor | None = None,
    in_gates: GateTable | None = None,
    out_gates: GateTable | None = None,
    gate_bias: bool = True,
    keep: str | None = None,
    config: MatmulConfig | None = None,
    tf32: object | None = None,
) -> Tensor | None:
    """y = s_out ⊙ ((s_in ⊙ a) b + bias) in a's dtype, with fp32 sums; returns what `keep` asks for.

    Args:
        a: ``[M, K]``, contiguous; M a multiple of the gates' samples.
        b: ``[K, N]``, or ``[N, K]`` if `b_columns`; contiguous.
        y: written: M·N numbers in the order of ``[M, N]``, of any shape.
        gate_bias: False adds bias behind s_out.
        keep: "gated" returns s_out ⊙ (…) without a bias outside, "ungated" the same without s_out, both like y.
        config: instead of `matmul_config`'s.
        tf32: the library's setting of fp32 precision that the product obeys; `torch.backends.cuda.matmul` if None.
    """
    (rows, inner), columns = a.shape, b.shape[0 if b_columns else 1]
    saved = torch.empty_like(y) if keep is not None else None
    if y.numel() == 0:
        return saved
    config = config or matmul_config(rows, columns, a.dtype, architecture(a.device))
    samples = next((gates.samples for gates in (in_gates, out_gates) if gates is not None), 1)
    height = rows // samples
    tiles = triton.cdiv(rows, config.block_m) * triton.cdiv(columns, config.block_n)
    modulated_matmul_kernel[(min(tiles, programs(a.device, config)),)](
        a,
        b,
        bias,
        y,
        saved,
        *table_arguments(in_gates),
        *table_arguments(out_gates),
        rows,
        columns,
        inner,
        height,
        samples,
        table_height(in_gates),
        table_height(out_gates),
        B_COLUMNS=b_columns,
        GATE_BIAS=gate_bias,
        SAVE_UNGATED=keep == "ungated",
        PAIR=height >= config.block_m,
        PRECISION=precision(a.dtype, tf32 or torch.backends.cuda.matmul),
        **config.launch(),
    )
    return saved


def table_arguments(gates: GateTable | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if gates is None else (gates.table, gates.rows)


def table_height(gates: GateTable | None) -> int:
    return 0 if gates is None else gates.table.shape[0]


def precision(dtype: torch.dtype, setting: object) -> str:
    """How an fp32 product runs on tensor cores: as the library would, in TF32 if the user allows it, else in three."""
    return "tf32" if dtype is not torch.float32 or setting.fp32_precision == "tf32" else "tf32x3"
