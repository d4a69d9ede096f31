"""The plain-PyTorch meaning of every op: the oracle of the tests, and the backend that runs anywhere.

Forward functions take any floating dtype, fp64 included, and are differentiable by plain autograd. Backward functions
are the closed forms, with products and sums in fp32 (fp64 if an operand is fp64).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from memmod.ops import dispatch
from memmod.ops.calls import (
    ConvCall,
    ConvGradCall,
    LayerCall,
    LayerGradCall,
    LinearCall,
    LinearGradCall,
    OutputCall,
    OutputGradCall,
)
from memmod.ops.gating import gate_in_place, gated, gates
from memmod.ops.layout import conv_memory_format
from memmod.ops.memory_gradient import memory_gradient, sums_of_products

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def modulated_linear(call: LinearCall) -> tuple[Tensor, Tensor]:
    """(y ``[k·B, …, O]``, saved): y = s_out ⊙ ((s_in ⊙ x) Wᵀ + b), with b outside of s_out if not `gate_bias`."""

    def layer(x: Tensor, bias: Tensor | None) -> Tensor:
        z = F.linear(x.flatten(0, -2), call.weight, bias)
        return _reshaped(z, (*x.shape[:-1], call.weight.shape[0]))

    return _forward(layer, call, -1)


def modulated_linear_backward(call: LinearGradCall) -> Gradients:
    """(dx, dweight, dbias, dmemory, dinput_memory); what `needs` does not ask for is an empty ``[0]`` tensor."""

    def layer_backward(dz: Tensor, x: Tensor | None, wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        rows = dz.flatten(0, -2)
        dx = _reshaped(rows @ call.weight, call.x_shape) if wanted[0] else None
        dweight = rows.T @ x.flatten(0, -2) if wanted[1] else None
        return dx, dweight, rows.sum(0) if wanted[2] else None

    return _backward(layer_backward, call, -1)


def modulated_conv2d(call: ConvCall) -> tuple[Tensor, Tensor]:
    """(y ``[k·B, O, H', W']``, saved): as `modulated_linear`, with a convolution of x ``[k·B, I, H, W]``."""
    memory_format = conv_memory_format(call.x, call.weight)

    def layer(x: Tensor, bias: Tensor | None) -> Tensor:
        return torch.conv2d(x, call.weight, bias, *call.conv).contiguous(memory_format=memory_format)

    return _forward(layer, call, 1)


def modulated_conv2d_backward(call: ConvGradCall) -> Gradients:
    """As `modulated_linear_backward`; dx is channels_last where dy or weight is, dweight where weight is."""

    def layer_backward(dz: Tensor, x: Tensor | None, wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        if not (wanted[0] or wanted[1]):
            return None, None, dz.sum((0, 2, 3))
        memory_format = conv_memory_format(call.dy, call.weight)
        if x is None:
            # Only its shape and layout are read.
            x = torch.empty(call.x_shape, dtype=dz.dtype, device=dz.device, memory_format=memory_format)
        options = (call.stride, call.padding, call.dilation, False, [0, 0], call.groups)
        dx, dweight, dbias = torch.ops.aten.convolution_backward(dz, x, call.weight, [dz.shape[1]], *options, wanted)
        if wanted[0]:
            dx = dx.contiguous(memory_format=memory_format)
        if wanted[1]:
            dweight = dweight.contiguous(memory_format=conv_memory_format(call.weight))
        return dx, dweight, dbias

    return _backward(layer_backward, call, 1)


def modulate_output(call: OutputCall) -> tuple[Tensor, Tensor]:
    """(y, saved): y = s ⊙ x along `dim`, for x ``[k·B, …]`` whose `dim` has the memory's width."""
    y = gated(call.x, gates(call.memory, call.index, call.gate), call.dim)
    return y, y.clone() if call.keep_gated else call.x.new_empty(0)


def modulate_output_backward(call: OutputGradCall) -> tuple[Tensor, Tensor]:
    """(dx, dmemory); `saved` is y, or x for the identity gate."""
    dy, memory, index, gate = call.dy, call.memory, call.index, call.gate
    need_dx, need_dmemory = call.needs
    dx = gated(dy, gates(memory, index, gate), call.dim) if need_dx else dy.new_empty(0)
    if not need_dmemory:
        return dx, memory.new_empty(0)
    sums = sums_of_products(dy, call.saved, call.dim, index.shape[0], memory.dtype)
    return dx, memory_gradient(memory, index, gate, sums)


def _reshaped(fresh: Tensor, shape: Sequence[int]) -> Tensor:
    """`fresh` in another shape, but no view: a view that an op returns could not be changed in place."""
    return torch.ops.aten._unsafe_view.default(fresh, list(shape))


def _forward(layer: Callable[[Tensor, Tensor | None], Tensor], call: LayerCall, dim: int) -> tuple[Tensor, Tensor]:
    x, bias, memory, index, gate = call.x, call.bias, call.memory, call.index, call.gate
    if call.input_memory is not None:
        x = gated(x, gates(call.input_memory, index, gate), dim)
    z = layer(x, bias if call.gate_bias else None)
    keep = call.keep_gated and memory is not None
    if memory is None:
        y = z
    elif keep and gate == "identity":
        y = gated(z, gates(memory, index, gate), dim)
    else:
        y = gate_in_place(z, gates(memory, index, gate), dim)
    saved = z if keep else y.new_empty(0)
    if bias is None or call.gate_bias:
        return y.clone() if saved is y else y, saved
    shape = [1] * y.dim()
    shape[dim] = -1
    return y + bias.view(shape) if saved is y else y.add_(bias.view(shape)), saved


def _backward(
    layer_backward: Callable[[Tensor, Tensor | None, Sequence[bool]], Sequence[Tensor | None]],
    call: LayerGradCall,
    dim: int,
) -> Gradients:
    need_dx, need_dweight, need_dbias, need_dmemory, need_dinput = call.needs
    dy, x, memory, input_memory, index, gate = call.dy, call.x, call.memory, call.input_memory, call.index, call.gate
    samples = index.shape[0]
    dx = dweight = dbias = dmemory = dinput = None
    if need_dmemory:
        sums = sums_of_products(dy, call.saved, dim, samples, memory.dtype)
        dmemory = memory_gradient(memory, index, gate, sums)
    wanted = [need_dx or need_dinput, need_dweight, need_dbias and call.gate_bias]
    if any(wanted):
        s_in = gates(input_memory, index, gate)
        dz = dy if memory is None else gated(dy, gates(memory, index, gate), dim)
        gated_x = gated(x, s_in, dim) if need_dweight and s_in is not None else x
        dx, dweight, dbias = layer_backward(dz, gated_x, wanted)
        if need_dinput and gate == "identity":
            sums = sums_of_products(dx, x, dim, samples, input_memory.dtype)
        if wanted[0] and s_in is not None:
            dx = gate_in_place(dx, s_in, dim)
        if need_dinput and gate != "identity":
            sums = sums_of_products(dx, x, dim, samples, input_memory.dtype)
        if need_dinput:
            dinput = memory_gradient(input_memory, index, gate, sums)
    if need_dbias and not call.gate_bias:
        dbias = dy.sum([d for d in range(dy.dim()) if d != dim % dy.dim()])
    gradients = (dx if need_dx else None, dweight, dbias, dmemory, dinput)
    return tuple(dy.new_empty(0) if gradient is None else gradient for gradient in gradients)


for _op in (
    modulated_linear,
    modulated_linear_backward,
    modulated_conv2d,
    modulated_conv2d_backward,
    modulate_output,
    modulate_output_backward,
):
    dispatch.register(_op.__name__, "reference", _op)
