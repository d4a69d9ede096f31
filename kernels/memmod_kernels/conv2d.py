"""memmod::modulated_conv2d: 1x1 through the linear kernel, k x k in channels_last as an implicit product with the same
prologue and epilogue, anything else as the library's convolution with the tail behind it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from memmod.kernels.configs import MatmulConfig, architecture, matmul_config, programs
from memmod.kernels.gates import GateTable, gate_table, tile_gates, tile_rows
from memmod.kernels.linear import (
    finish,
    folded,
    folded_bias,
    matmul,
    precision,
    table_arguments,
    table_height,
)
from memmod.kernels.output import memory_gradient, modulate, sums_along
from memmod.ops.backends.gpu_policy import Path, conv_path, linear_path
from memmod.ops.layout import conv_memory_format, conv_output_size


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
    y = _channels_last(x, units, size)
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


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    memory: Tensor | None,
    input_memory: Tensor | None,
    index: Tensor,
    gate: str,
    gate_bias: bool,
    keep_gated: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    """(y ``[k·B, O, H', W']``, saved) for x ``[k·B, I, H, W]``, weight ``[O, I / groups, kH, kW]``."""
    memory_format = conv_memory_format(x, weight)
    x = x.contiguous(memory_format=memory_format)
    s_in, s_out = gate_table(input_memory, index, gate), gate_table(memory, index, gate)
    keep = None if not keep_gated or memory is None else "ungated" if gate == "identity" else "gated"
    size = conv_output_size(x.shape, weight.shape, stride, padding, dilation)
    pixels = x.shape[0] * size[0] * size[1]
    last = memory_format is torch.channels_last
    path = _path(weight, stride, padding, groups, pixels, last, index.shape[0] == 1 and keep is None)
    options = (stride, padding, dilation, groups)
    if path == "fused":
        gates = {"in_gates": s_in, "out_gates": s_out, "bias": bias, "gate_bias": gate_bias, "keep": keep}
        if _pointwise(weight, stride, padding):
            y = _channels_last(x, weight.shape[0], size)
            saved = matmul(
                _rows(x), weight.reshape(weight.shape[:2]), y, b_columns=True, tf32=torch.backends.cudnn.conv, **gates
            )
        else:
            weight = weight.permute(0, 2, 3, 1).contiguous()
            y, saved = conv2d(x, weight, size, stride=stride, padding=padding, dilation=dilation, **gates)
    elif path == "fold":
        w = folded(weight, s_in, s_out)
        y = torch.conv2d(x, w, folded_bias(bias, s_out, gate_bias), *options).contiguous(memory_format=memory_format)
        saved = None
    else:
        if s_in is not None:
            x = modulate(x, s_in, 1)
        z = torch.conv2d(x, weight, bias if gate_bias else None, *options).contiguous(memory_format=memory_format)
        y, saved = finish(z, s_out, None if gate_bias else bias, keep, 1)
    return y, y.new_empty(0) if saved is None else saved


def modulated_conv2d_backward(
    dy: Tensor,
    x_shape: Sequence[int],
    x: Tensor | None,
    weight: Tensor | None,
    memory: Tensor | None,
    input_memory: Tensor | None,
    index: Tensor,
    saved: Tensor | None,
    gate: str,
    gate_bias: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `modulated_linear_backward`; dx is channels_last where dy or weight is, dweight where weight is."""
    need_dx, need_dweight, need_dbias, need_dmemory, need_dinput = needs
    memory_format = conv_memory_format(dy, weight) if weight is not None else conv_memory_format(dy)
    dy = dy.contiguous(memory_format=memory_format)
    s_in = s_out = None
    if need_dx or need_dinput or need_dweight or (need_dbias and gate_bias):
        s_in, s_out = gate_table(input_memory, index, gate), gate_table(memory, index, gate)
    dx = dz = dweight = dbias = dmemory = dinput = None
    need_product = need_dx or need_dinput
    late = need_dinput and gate == "identity"
    path: Path = "unfused"
    if need_product and not need_dweight:
        last = memory_format is torch.channels_last
        pixels = dy.shape[0] * dy.shape[2] * dy.shape[3]
        path = _path(weight, stride, padding, groups, pixels, last, index.shape[0] == 1 and not need_dinput)
        reach = [dilation[d] * (weight.shape[2 + d] - 1) - padding[d] for d in (0, 1)]
        # The gradient of a convolution with stride 1 is a convolution too.
        if path == "fused" and (max(stride) > 1 or min(reach) < 0):
            path = "unfused"
    options = (stride, padding, dilation, False, [0, 0], groups)
    if path == "unfused" and (need_product or need_dweight):
        if need_dmemory:
            dz, dmemory = memory_gradient(dy, saved, memory, index, gate, 1, gates=s_out)
        else:
            dz = dy if s_out is None else modulate(dy, s_out, 1)
        gated_x = x if s_in is None or not need_dweight else modulate(x, s_in, 1)
        if gated_x is None:
            # Only its shape and layout are read.
            gated_x = torch.empty(x_shape, dtype=dy.dtype, device=dy.device, memory_format=memory_format)
        dx, dweight, _ = torch.ops.aten.convolution_backward(
            dz, gated_x, weight, None, *options, [need_product, need_dweight, False]
        )
        if need_dweight:
            dweight = dweight.contiguous(memory_format=conv_memory_format(weight))
        if need_product:
            dx = dx.contiguous(memory_format=memory_format)
            if s_in is not None and not late:
                dx = modulate(dx, s_in, 1, out=dx)
    else:
        if need_dmemory:
            _, dmemory = memory_gradient(dy, saved, memory, index, gate, 1)
        if path == "fold":
            like = torch.empty(x_shape, dtype=dy.dtype, device=dy.device, memory_format=memory_format)
            w = folded(weight, s_in, s_out)
            dx = torch.ops.aten.convolution_backward(dy, like, w, None, *options, [True, False, False])[0]
            dx = dx.contiguous(memory_format=memory_format)
        elif need_product:
            gates = {"in_gates": s_out, "out_gates": None if late else s_in}
            if _pointwise(weight, stride, padding):
                dx = _channels_last(dy, x_shape[1], x_shape[2:])
                matmul(
                    _rows(dy),
                    weight.reshape(weight.shape[:2]),
                    dx,
                    b_columns=False,
                    tf32=torch.backends.cudnn.conv,
                    **gates,
                )
            else:
                turned = weight.flip(2, 3).permute(1, 2, 3, 0).contiguous()
                dx, _ = conv2d(dy, turned, x_shape[2:], stride=(1, 1), padding=reach, dilation=dilation, **gates)
    if need_dinput:
        gated, dinput = memory_gradient(dx, x, input_memory, index, gate, 1, gates=s_in if late and need_dx else None)
        dx = dx if gated is None else gated
    if need_dbias:
        dbias = sums_along(dy, s_out if gate_bias else None, 1)
    gradients = (dx if need_dx else None, dweight, dbias, dmemory, dinput)
    return tuple(dy.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _path(
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int,
    pixels: int,
    channels_last: bool,
    whole_batch: bool,
) -> Path:
    units, inputs, kernel_h, kernel_w = weight.shape
    if groups == 1 and channels_last and _pointwise(weight, stride, padding):
        path = linear_path(inputs, whole_batch)
    else:
        path = conv_path(inputs, kernel_h * kernel_w, units, pixels, whole_batch)
    if path == "fused" and (groups > 1 or not channels_last):
        return "unfused"
    return path if path != "fold" or groups == 1 else "unfused"


def _pointwise(weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> bool:
    return weight.shape[2:] == (1, 1) and max(stride) == 1 and max(padding) == 0


def _rows(x: Tensor) -> Tensor:
    """A channels_last x ``[images, C, H, W]`` as its rows ``[images·H·W, C]``."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _channels_last(like: Tensor, width: int, size: Sequence[int]) -> Tensor:
    """Uninitialised ``[images, width, *size]``."""
    shape = (like.shape[0], width, *size)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
