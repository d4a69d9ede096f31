"""memmod::modulated_linear and memmod::modulated_conv2d by the CUDA C++ kernels: own products where cuda_paths.py says
so, else the library's and the tail behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from memmod.ops.backends.cuda.output import GATES, Selected, memory_gradient, modulate, selected, sums_along
from memmod.ops.backends.cuda.policy import SMALL_ROWS
from memmod.ops.layout import conv_memory_format, conv_output_size

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def modulated_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    memory: Tensor | None,
    input_memory: Tensor | None,
    index: Tensor,
    gate: str,
    gate_bias: bool,
    keep_gated: bool,
) -> tuple[Tensor, Tensor]:
    """(y ``[k·B, …, O]``, saved) for x ``[k·B, …, I]``, weight ``[O, I]``."""
    units = weight.shape[0]
    rows = x.flatten(0, -2).contiguous()
    s_in, s_out = selected(input_memory, index, gate), selected(memory, index, gate)
    keep = _keep(keep_gated, memory, gate)
    if 0 < rows.shape[0] <= SMALL_ROWS and units > 0:
        y = rows.new_empty(rows.shape[0], units)
        saved = torch.empty_like(y) if keep is not None else None
        memories = (None if s_out is None else s_out.memory, None if s_in is None else s_in.memory)
        bias = None if bias is None else bias.contiguous()
        torch.ops.memmod_cuda.linear_small.default(
            rows,
            weight.contiguous(),
            bias,
            y,
            saved,
            *memories,
            index.contiguous(),
            GATES[gate],
            gate_bias,
            keep == "ungated",
        )
    else:
        gated_x = rows if s_in is None else modulate(rows, s_in, -1)
        y, saved = _finish(F.linear(gated_x, weight, bias if gate_bias else None), s_out, bias, gate_bias, keep, -1)
    shape = (*x.shape[:-1], units)
    y = torch.ops.aten._unsafe_view.default(y, shape)
    return y, y.new_empty(0) if saved is None else torch.ops.aten._unsafe_view.default(saved, shape)


def modulated_linear_backward(
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
    needs: Sequence[bool],
) -> Gradients:
    """(dx, dweight, dbias, dmemory, dinput_memory); what `needs` does not ask for is an empty ``[0]`` tensor."""
    need_dx, need_dweight, need_dbias, need_dmemory, need_dinput = needs
    rows = dy.flatten(0, -2).contiguous()
    kept = None if saved is None else saved.flatten(0, -2)
    s_in, s_out = selected(input_memory, index, gate), selected(memory, index, gate)
    dx = dweight = dbias = dinput = None
    dz, dmemory = _through_gates(rows, kept, s_out, -1, need_dx or need_dinput or need_dweight, need_dmemory)
    if need_dx or need_dinput:
        dx, dinput = _through_inputs(dz @ weight, x, s_in, gate, -1, need_dinput)
    if need_dweight:
        flat = x.flatten(0, -2)
        dweight = dz.T @ (flat if s_in is None else modulate(flat, s_in, -1))
    if need_dbias:
        dbias = sums_along(rows, s_out if gate_bias else None, -1)
    if need_dx:
        dx = torch.ops.aten._unsafe_view.default(dx, list(x_shape))
    return _gradients(dy, needs, dx, dweight, dbias, dmemory, dinput)


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
    s_in, s_out = selected(input_memory, index, gate), selected(memory, index, gate)
    keep = _keep(keep_gated, memory, gate)
    x = x if s_in is None else modulate(x, s_in, 1)
    size = conv_output_size(x.shape, weight.shape, stride, padding, dilation)
    last = memory_format is torch.channels_last
    if groups == 1 and last and math.prod(size) * x.shape[0] > 0 and weight.numel() > 0:
        y = _empty(x, weight.shape[0], size)
        saved = torch.empty_like(y) if keep is not None else None
        options = {"bias": bias, "gate_bias": gate_bias, "saved": saved, "save_ungated": keep == "ungated"}
        _conv2d(x, weight.permute(0, 2, 3, 1), y, s_out, index, (*stride, *padding, *dilation), **options)
    else:
        z = torch.conv2d(x, weight, bias if gate_bias else None, stride, padding, dilation, groups)
        y, saved = _finish(z.contiguous(memory_format=memory_format), s_out, bias, gate_bias, keep, 1)
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
) -> Gradients:
    """As `modulated_linear_backward`; dx is channels_last where dy or weight is, dweight where weight is."""
    need_dx, need_dweight, need_dbias, need_dmemory, need_dinput = needs
    memory_format = conv_memory_format(dy, weight)
    dy = dy.contiguous(memory_format=memory_format)
    s_in, s_out = selected(input_memory, index, gate), selected(memory, index, gate)
    need_product = need_dx or need_dinput
    dx = dweight = dbias = dinput = None
    dz, dmemory = _through_gates(dy, saved, s_out, 1, need_product or need_dweight, need_dmemory)
    last = memory_format is torch.channels_last
    if need_product and not need_dweight and groups == 1 and last and dz.numel() > 0 and math.prod(x_shape) > 0:
        dx = _empty(dz, x_shape[1], x_shape[2:])
        options = (*stride, *padding, *dilation)
        _conv2d(dz, weight.permute(1, 2, 3, 0), dx, None, index, options, transposed=True)
    elif need_product or need_dweight:
        gated_x = x if s_in is None or not need_dweight else modulate(x, s_in, 1)
        if gated_x is None:
            # Only its shape and layout are read.
            gated_x = torch.empty(x_shape, dtype=dy.dtype, device=dy.device, memory_format=memory_format)
        options = (stride, padding, dilation, False, [0, 0], groups)
        dx, dweight, _ = torch.ops.aten.convolution_backward(
            dz, gated_x, weight, None, *options, [need_product, need_dweight, False]
        )
        dx = dx.contiguous(memory_format=memory_format) if need_product else None
        dweight = dweight.contiguous(memory_format=conv_memory_format(weight)) if need_dweight else None
    if need_product:
        dx, dinput = _through_inputs(dx, x, s_in, gate, 1, need_dinput)
    if need_dbias:
        dbias = sums_along(dy, s_out if gate_bias else None, 1)
    return _gradients(dy, needs, dx, dweight, dbias, dmemory, dinput)


def _conv2d(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    gates: Selected | None,
    index: Tensor,
    geometry: Sequence[int],
    *,
    bias: Tensor | None = None,
    gate_bias: bool = True,
    saved: Tensor | None = None,
    save_ungated: bool = False,
    relu: bool = False,
    transposed: bool = False,
) -> None:
    """The kernel: x, y and saved ``[images, channels, H, W]`` in channels_last, weight ``[units, kH, kW, inputs]``."""
    memory, index, number = (None, index.contiguous(), 0) if gates is None else gates
    tf32 = x.dtype is torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32"
    torch.ops.memmod_cuda.conv2d.default(
        x.permute(0, 2, 3, 1),
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        y.permute(0, 2, 3, 1),
        None if saved is None else saved.permute(0, 2, 3, 1),
        memory,
        index,
        number,
        gate_bias,
        save_ungated,
        relu,
        transposed,
        tf32,
        list(geometry),
    )


def _empty(like: Tensor, width: int, size: Sequence[int]) -> Tensor:
    """Uninitialised ``[images, width, *size]`` in channels_last."""
    shape = (like.shape[0], width, *size)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _keep(keep_gated: bool, memory: Tensor | None, gate: str) -> str | None:
    """What the backward needs beside y: "gated", the product behind its gate, or "ungated", the one before it."""
    return None if not keep_gated or memory is None else "ungated" if gate == "identity" else "gated"


def _finish(
    z: Tensor, s_out: Selected | None, bias: Tensor | None, gate_bias: bool, keep: str | None, dim: int
) -> tuple[Tensor, Tensor | None]:
    """(y, saved) of a library product z that nothing else holds, in which a gated bias is already."""
    outer = None if gate_bias else bias
    if keep == "ungated":
        return modulate(z, s_out, dim, bias=outer), z
    if keep == "gated":
        gated = modulate(z, s_out, dim, out=z)
        return (gated.clone() if outer is None else modulate(gated, None, dim, bias=outer)), gated
    if s_out is None and outer is None:
        return z, None
    return modulate(z, s_out, dim, bias=outer, out=z), None


def _through_gates(
    dy: Tensor, saved: Tensor | None, s_out: Selected | None, dim: int, need_dz: bool, need_dmemory: bool
) -> tuple[Tensor | None, Tensor | None]:
    """(s ⊙ dy, dα) of an output's gates."""
    if need_dmemory:
        return memory_gradient(dy, saved, s_out, dim, with_dz=need_dz)
    return (dy if s_out is None else modulate(dy, s_out, dim)) if need_dz else None, None


def _through_inputs(
    dx: Tensor, x: Tensor | None, s_in: Selected | None, gate: str, dim: int, need_dinput: bool
) -> tuple[Tensor, Tensor | None]:
    """(dx, dα) of an input's gates, from the product's gradient, which nothing else holds."""
    if s_in is None:
        return dx, None
    if not need_dinput:
        return modulate(dx, s_in, dim, out=dx), None
    x = x.flatten(0, -2) if dim == -1 else x
    if gate == "identity":
        return memory_gradient(dx, x, s_in, dim, with_dz=True)
    dx = modulate(dx, s_in, dim, out=dx)
    return dx, memory_gradient(dx, x, s_in, dim, with_dz=False)[1]


def _gradients(like: Tensor, needs: Sequence[bool], *gradients: Tensor | None) -> Gradients:
    return tuple(like.new_empty(0) if not need else gradient for need, gradient in zip(needs, gradients, strict=True))
