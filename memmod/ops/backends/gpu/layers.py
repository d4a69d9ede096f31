"""memmod::modulated_linear and memmod::modulated_conv2d: a backend's product with the gates inside of it where it says
so, else the library's product, with the gates in the weight or in passes around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from memmod.ops.backends import gpu_policy
from memmod.ops.backends.gpu.output import memory_gradient, modulate, sums_along
from memmod.ops.backends.gpu.primitives import Gates, GradientPath, Keep, Primitives, contiguous
from memmod.ops.backends.gpu_policy import Path
from memmod.ops.calls import ConvCall, ConvGradCall, LayerCall, LayerGradCall, LinearCall, LinearGradCall
from memmod.ops.layout import channels, conv_memory_format, conv_output_size

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def modulated_linear(kernels: Primitives, call: LinearCall) -> tuple[Tensor, Tensor]:
    """(y ``[k·B, …, O]``, saved) for x ``[k·B, …, I]``, weight ``[O, I]``; arXiv 2304.02049."""
    keep = _keep(call)
    *rows, inputs = call.x.shape
    path = kernels.linear_path(call, _whole_batch(call, math.prod(rows), inputs, keep is not None))
    if path == "fused":
        y, saved = kernels.linear(call, *_gates(kernels, call), keep)
    else:
        y, saved = _by_library(kernels, F.linear, call, call.x.flatten(0, -2), path, keep, -1, bias_in_tail=False)
        # No views: what an op returns may be changed in place.
        shape = (*call.x.shape[:-1], call.weight.shape[0])
        y = torch.ops.aten._unsafe_view.default(y, shape)
        saved = None if saved is None else torch.ops.aten._unsafe_view.default(saved, shape)
    return y, y.new_empty(0) if saved is None else saved


def modulated_linear_backward(kernels: Primitives, call: LinearGradCall) -> Gradients:
    """(dx, dweight, dbias, dmemory, dinput_memory); what `needs` does not ask for is an empty ``[0]`` tensor."""
    need_dx, need_dweight, _, _, need_dinput = call.needs
    dy = call.dy.flatten(0, -2).contiguous()
    x, saved = (None if t is None else t.flatten(0, -2) for t in (call.x, call.saved))
    # With dweight the gated gradient is there.
    whole_batch = _whole_batch(call, dy.shape[0], call.x_shape[-1], need_dweight or need_dinput)
    path = kernels.linear_dx_path(call, whole_batch) if need_dx or need_dinput else None

    def library(dz: Tensor, x: Tensor | None, weight: Tensor, needs: Sequence[bool]) -> Sequence[Tensor | None]:
        return dz @ weight if needs[0] else None, dz.T @ x if needs[1] else None

    dx, *others = _backward(kernels, kernels.linear_dx, library, call, dy, x, saved, path, -1)
    if need_dx:
        dx = torch.ops.aten._unsafe_view.default(dx, list(call.x_shape))
    return dx, *others


def modulated_conv2d(kernels: Primitives, call: ConvCall) -> tuple[Tensor, Tensor]:
    """(y ``[k·B, O, H', W']``, saved) for x ``[k·B, I, H, W]``, weight ``[O, I / groups, kH, kW]``."""
    memory_format = conv_memory_format(call.x, call.weight)
    call = call._replace(x=call.x.contiguous(memory_format=memory_format))
    keep = _keep(call)
    size = conv_output_size(call.x.shape, call.weight.shape, call.stride, call.padding, call.dilation)
    channels_last = memory_format is torch.channels_last
    pixels, inputs = call.x.shape[0] * math.prod(size), math.prod(call.weight.shape[1:])
    whole_batch = keep is None and gpu_policy.whole_batch_conv(call, pixels, inputs)
    path = kernels.conv2d_path(call, size, channels_last, whole_batch)
    if path == "fused":
        y, saved = kernels.conv2d(call, size, *_gates(kernels, call), keep)
    else:

        def layer(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return torch.conv2d(x, weight, bias, *call.conv).contiguous(memory_format=memory_format)

        y, saved = _by_library(kernels, layer, call, call.x, path, keep, 1, bias_in_tail=True)
    return y, y.new_empty(0) if saved is None else saved


def modulated_conv2d_backward(kernels: Primitives, call: ConvGradCall) -> Gradients:
    """As `modulated_linear_backward`; dx is channels_last where dy or weight is, dweight where weight is."""
    need_dx, need_dweight, _, _, need_dinput = call.needs
    memory_format = conv_memory_format(call.dy, call.weight)
    dy = call.dy.contiguous(memory_format=memory_format)
    path = None
    if need_dx or need_dinput:
        channels_last = memory_format is torch.channels_last
        pixels, inputs = dy.shape[0] * math.prod(dy.shape[2:]), math.prod(call.weight.shape[1:])
        whole_batch = _whole_batch(call, pixels, inputs, need_dinput)
        # The library computes dweight and dx together.
        path = "unfused" if need_dweight else kernels.conv2d_dx_path(call, channels_last, whole_batch)

    def library(dz: Tensor, x: Tensor | None, weight: Tensor, needs: Sequence[bool]) -> Sequence[Tensor | None]:
        if x is None:
            # Only its shape and layout are read.
            x = torch.empty(call.x_shape, dtype=dz.dtype, device=dz.device, memory_format=memory_format)
        options = (call.stride, call.padding, call.dilation, False, [0, 0], call.groups)
        dx, dweight, _ = torch.ops.aten.convolution_backward(dz, x, weight, None, *options, [*needs, False])
        return (
            dx.contiguous(memory_format=memory_format) if needs[0] else None,
            dweight.contiguous(memory_format=conv_memory_format(weight)) if needs[1] else None,
        )

    return _backward(kernels, kernels.conv2d_dx, library, call, dy, call.x, call.saved, path, 1)


def _gates(kernels: Primitives, call: LayerCall | LayerGradCall) -> tuple[Gates | None, Gates | None]:
    """Those of the inputs and those of the units."""
    s_in = kernels.gates(call.input_memory, call.index, call.gate)
    return s_in, kernels.gates(call.memory, call.index, call.gate)


def _keep(call: LayerCall) -> Keep | None:
    if not call.keep_gated or call.memory is None:
        return None
    return "ungated" if call.gate == "identity" else "gated"


def _whole_batch(call: LayerCall | LayerGradCall, rows: int, inputs: int, need_product: bool) -> bool:
    return not need_product and gpu_policy.whole_batch(call.index.shape[0], rows, inputs)


def _by_library(
    kernels: Primitives,
    layer: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    call: LayerCall,
    x: Tensor,
    path: Path,
    keep: Keep | None,
    dim: int,
    bias_in_tail: bool,
) -> tuple[Tensor, Tensor | None]:
    """(y, saved) by the library's layer(x, weight, bias).

    bias_in_tail: the pass of the gates adds the bias, as the library would by one of its own.
    """
    s_in, s_out = _gates(kernels, call)
    # With other strides the library takes another kernel, and gives other bits.
    bias = contiguous(call.bias)
    if path == "fold":
        if bias is not None and s_out is not None and call.gate_bias:
            bias = modulate(kernels, bias, s_out, 0)
        return layer(x, _folded(kernels, call.weight, s_in, s_out), bias), None
    if s_in is not None:
        x = modulate(kernels, x, s_in, dim)
    inner, outer = (bias, None) if call.gate_bias else (None, bias)
    inside = bias_in_tail and inner is not None and s_out is not None and keep != "ungated"
    # Nothing else holds z.
    z = layer(x, call.weight, None if inside else inner)
    if keep == "ungated":
        return modulate(kernels, z, s_out, dim, bias=outer), z
    if keep == "gated":
        gated = modulate(kernels, z, s_out, dim, bias=inner if inside else None, bias_inside=inside, out=z)
        return gated.clone() if outer is None else modulate(kernels, gated, None, dim, bias=outer), gated
    if s_out is None and outer is None:
        return z, None
    return modulate(kernels, z, s_out, dim, bias=inner if inside else outer, bias_inside=inside, out=z), None


def _backward(
    kernels: Primitives,
    product: Callable[[Tensor, LayerGradCall, Gates | None, Gates | None], Tensor],
    library: Callable[[Tensor, Tensor | None, Tensor, Sequence[bool]], Sequence[Tensor | None]],
    call: LayerGradCall,
    dy: Tensor,
    x: Tensor | None,
    saved: Tensor | None,
    path: GradientPath | None,
    dim: int,
) -> Gradients:
    """`product` is the backend's of dx; `library` gives (dx, dweight) of a layer of this x and weight without gates."""
    need_dx, need_dweight, need_dbias, need_dmemory, need_dinput = call.needs
    s_in, s_out = _gates(kernels, call)
    # The identity gate's memory needs the product before its own gate.
    early = None if need_dinput and call.gate == "identity" else s_in
    around = path in ("product", "unfused")
    dz = dx = dweight = dbias = dmemory = dinput = None
    if need_dmemory:
        dz, dmemory = memory_gradient(kernels, dy, saved, s_out, dim, with_dz=around or need_dweight)
    elif around or need_dweight:
        dz = dy if s_out is None else modulate(kernels, dy, s_out, dim)
    if path == "fused":
        dx = product(dy, call, s_out, early) if dz is None else product(dz, call, None, early)
    elif path == "product":
        dx = product(dz, call, None, None)
    elif path == "fold":
        dx, _ = library(dy, None, _folded(kernels, call.weight, s_in, s_out), [True, False])
    if path == "unfused" or need_dweight:
        gated_x = modulate(kernels, x, s_in, dim) if need_dweight and s_in is not None else x
        by_library, dweight = library(dz, gated_x, call.weight, [path == "unfused", need_dweight])
        dx = by_library if path == "unfused" else dx
    if around and early is not None:
        dx = modulate(kernels, dx, early, dim, out=dx)
    if need_dinput:
        gated, dinput = memory_gradient(kernels, dx, x, s_in, dim, with_dz=need_dx and early is None)
        dx = dx if gated is None else gated
    if need_dbias:
        dbias = sums_along(kernels, dy, s_out if call.gate_bias else None, dim)
    pairs = zip(call.needs, (dx, dweight, dbias, dmemory, dinput), strict=True)
    return tuple(gradient if need else call.dy.new_empty(0) for need, gradient in pairs)


def _folded(kernels: Primitives, weight: Tensor, s_in: Gates | None, s_out: Gates | None) -> Tensor:
    """weight ``[O, I, …]`` with the gates of a whole batch in it, in its own dtype."""
    if s_in is None:
        return modulate(kernels, weight, s_out, 0)
    if s_out is None:
        return _inputs_gated(kernels, weight, s_in, weight.dtype)
    # Rounded once.
    return _inputs_gated(kernels, modulate(kernels, weight.float(), s_out, 0), s_in, weight.dtype)


def _inputs_gated(kernels: Primitives, weight: Tensor, s_in: Gates, dtype: torch.dtype) -> Tensor:
    """weight ``[O, I, …]`` with the gates of its inputs for a whole batch, in `dtype`."""
    view = channels(weight, 1)
    if view.inner == 1:
        return modulate(kernels, weight, s_in, 1).to(dtype)
    # The tail takes a warp for a line, and these have as many numbers as a kernel has taps.
    ones = s_in.memory.new_ones(1, view.width)
    gated = torch.empty_like(weight, dtype=dtype)
    return torch.mul(weight, modulate(kernels, ones, s_in, -1).view(-1, 1, 1), out=gated)
