"""A convolution in channels_last as an implicit product with the prologue and the epilogue of linear.py's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from memmod.kernels.configs import MatmulConfig, architecture, matmul_config, programs
from memmod.kernels.gates import GateTable, tile_gates, tile_rows
from memmod.kernels.linear import precision, table_arguments, table_height
from memmod.ops.layout import empty_channels_last


@triton.jit
def modulated_conv2d_kernel(
    x,
    weight,
    bias,
    y,
    saved,
    in_table,
    in_rows,
    out_table,
    out_rows,
    M,
    N,
    H,
    W,
    I,  # noqa: E741
    HO,
    WO,
    KW,
    TAPS,
    STRIDE_H,
    STRIDE_W,
    PAD_H,
    PAD_W,
    DILATION_H,
    DILATION_W,
    T,
    B,
    R_IN,
    R_OUT,
    GATE_BIAS: tl.constexpr,
    SAVE_UNGATED: tl.constexpr,
    PAIR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """y [M, N] = s_out ⊙ ((s_in ⊙ x) * weight + bias): row m is an output pixel of x [images, H, W, I], whose sample is
    m // T; weight [N, KH, KW, I] with TAPS = KH·KW. As in modulated_matmul_kernel, with K = TAPS·I."""
    K = TAPS * I
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    for i_tile in range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        i_group = i_tile // (GROUP_M * tiles_n)
        group = min(tiles_m - i_group * GROUP_M, GROUP_M)
        i_in_group = i_tile - i_group * GROUP_M * tiles_n
        i_m = i_group * GROUP_M + i_in_group % group
        i_n = i_in_group // group

        o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
        o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
        m_m, m_n = o_m < M, o_n < N
        o_line = o_m // WO
        o_image = o_line // HO
        o_h = (o_line - o_image * HO) * STRIDE_H - PAD_H
        o_w = (o_m - o_line * WO) * STRIDE_W - PAD_W
        p_image = x + o_image.to(tl.int64) * H * W * I
        p_unit = weight + o_n.to(tl.int64) * K
        if in_table is not None:
            b_row, b_next, m_first = tile_rows(in_rows, o_m, i_m * BLOCK_M, T, B, PAIR)

        b_z = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for i_k in range(0, K, BLOCK_K):
            o_k = i_k + tl.arange(0, BLOCK_K)
            m_k = o_k < K
            o_tap = o_k // I
            o_i = o_k - o_tap * I
            o_kh = o_tap // KW
            o_y = o_h[:, None] + (o_kh * DILATION_H)[None, :]
            o_x = o_w[:, None] + ((o_tap - o_kh * KW) * DILATION_W)[None, :]
            m_x = m_m[:, None] & m_k[None, :] & (o_y >= 0) & (o_y < H) & (o_x >= 0) & (o_x < W)
            o = (o_y.to(tl.int64) * W + o_x) * I + o_i[None, :]
            b_x = tl.load(p_image[:, None] + o, mask=m_x, other=0.0)
            b_w = tl.load(p_unit[None, :] + o_k[:, None], mask=m_k[:, None] & m_n[None, :], other=0.0)
            if in_table is not None:
                b_s = tile_gates(in_table, b_row, b_next, m_first, o_i, m_k, R_IN, I, PAIR)
                b_x = (b_x * b_s).to(b_x.dtype)
            b_z = tl.dot(b_x, b_w, b_z, input_precision=PRECISION)

        m_y = m_m[:, None] & m_n[None, :]
        o_out = o_m.to(tl.int64)[:, None] * N + o_n[None, :]
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
            tl.store(saved + o_out, b_saved.to(saved.dtype.element_ty), mask=m_y)
        if bias is not None:
            if not GATE_BIAS:
                b_y += b_bias
        tl.store(y + o_out, b_y.to(y.dtype.element_ty), mask=m_y)


def conv2d(
    x: Tensor,
    weight: Tensor,
    size: Sequence[int],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    bias: Tensor | None = None,
    in_gates: GateTable | None = None,
    out_gates: GateTable | None = None,
    gate_bias: bool = True,
    keep: str | None = None,
    config: MatmulConfig | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(y ``[images, O, *size]``, saved), channels_last, as `linear.matmul` with a convolution of x.

    Args:
        x: ``[images, I, H, W]``, channels_last.
        weight: ``[O, kH, kW, I]``, contiguous.
    """
    images, inputs, height, width = x.shape
    units, kernel_h, kernel_w = weight.shape[:3]
    y = empty_channels_last(x, units, size)
    saved = torch.empty_like(y) if keep is not None else None
    if y.numel() == 0:
        return y, saved
    pixels = images * size[0] * size[1]
    config = config or matmul_config(pixels, units, x.dtype, architecture(x.device))
    samples = next((gates.samples for gates in (in_gates, out_gates) if gates is not None), 1)
    tiles = triton.cdiv(pixels, config.block_m) * triton.cdiv(units, config.block_n)
    modulated_conv2d_kernel[(min(tiles, programs(x.device, config)),)](
        x,
        weight,
        bias,
        y,
        saved,
        *table_arguments(in_gates),
        *table_arguments(out_gates),
        pixels,
        units,
        height,
        width,
        inputs,
        *size,
        kernel_w,
        kernel_h * kernel_w,
        *stride,
        *padding,
        *dilation,
        pixels // samples,
        samples,
        table_height(in_gates),
        table_height(out_gates),
        GATE_BIAS=gate_bias,
        SAVE_UNGATED=keep == "ungated",
        PAIR=pixels // samples >= config.block_m,
        PRECISION=precision(x.dtype, torch.backends.cudnn.conv),
        **config.launch(),
    )
    return y, saved
