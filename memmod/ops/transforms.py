"""The ops in plain, out-of-place PyTorch, for forward-mode derivatives and `torch.func`: those do not know kernels.

Every derivative, of any order and in either mode, and `vmap` follow from PyTorch's own. Slower than the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from memmod.ops.calls import ConvCall, LayerCall, LinearCall, OutputCall
from memmod.ops.define import check_classes
from memmod.ops.gating import distinct

_functorch = torch._C._functorch


def modulated_linear(call: LinearCall) -> Tensor:
    """y ``[k·B, …, O]`` = s_out ⊙ ((s_in ⊙ x) Wᵀ + b), as `memmod.functional.modulated_linear`."""
    return _layer(lambda x: F.linear(x, call.weight), call, -1)


def modulated_conv2d(call: ConvCall) -> Tensor:
    """y ``[k·B, O, H', W']``, as `memmod.functional.modulated_conv2d`."""
    options = (call.stride, call.padding, call.dilation, call.groups)
    return _layer(lambda x: F.conv2d(x, call.weight, None, *options), call, 1)


def modulate_output(call: OutputCall) -> Tensor:
    """y = s ⊙ x along `dim`, as `memmod.functional.modulate_output`."""
    _check_classes(call.index, call.memory)
    return _gated(call.x, _gates(call.memory, call.index, call.gate), call.dim)


def _layer(layer: Callable[[Tensor], Tensor], call: LayerCall, dim: int) -> Tensor:
    x, bias, memory, input_memory, index = call.x, call.bias, call.memory, call.input_memory, call.index
    _check_classes(index, memory, input_memory)
    if input_memory is not None:
        x = _gated(x, _gates(input_memory, index, call.gate), dim)
    y = layer(x)
    shape = [1] * y.dim()
    shape[dim] = -1
    if bias is not None and call.gate_bias:
        y = y + bias.view(shape)
    if memory is not None:
        y = _gated(y, _gates(memory, index, call.gate), dim)
    return y + bias.view(shape) if bias is not None and not call.gate_bias else y


def _gates(memory: Tensor, index: Tensor, gate: str) -> Tensor:
    """Each sample's multipliers ``[B, K]``: the product over its classes, a class named twice counting once."""
    multipliers = memory.sigmoid() if gate == "sigmoid" else _HardGate.apply(memory) if gate == "hard" else memory
    # -1 is the row of ones behind the last class.
    table = torch.cat((multipliers, torch.ones_like(multipliers[:1])))
    columns = [index] if index.dim() == 1 else distinct(index).unbind(1)
    product = None
    for column in columns:
        rows = table.index_select(0, column.remainder(table.shape[0]))
        out_of_range = (column < -1) | (column >= memory.shape[0])
        rows = rows.masked_fill(out_of_range.unsqueeze(1), math.nan)
        product = rows if product is None else product * rows
    return torch.ones_like(memory[:1]).expand(index.shape[0], -1) if product is None else product


def _gated(x: Tensor, s: Tensor, dim: int) -> Tensor:
    """x ``[k·B, …]`` times s ``[B, K]`` along `dim`, in x's dtype; row r of x belongs to sample r // k."""
    samples = s.shape[0]
    rows = x.unflatten(0, (samples, x.shape[0] // samples if samples else 1))
    shape = [1] * rows.dim()
    shape[0] = samples
    shape[dim % x.dim() + 1] = s.shape[1]
    return (rows * s.view(shape)).to(x.dtype).flatten(0, 1)


class _HardGate(torch.autograd.Function):
    """α > 0 as a number: a step, whose derivative is asked for by mistake."""

    generate_vmap_rule = True

    @staticmethod
    def forward(memory: Tensor) -> Tensor:
        return (memory > 0).to(memory.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, *_gradients: Tensor) -> Tensor:
        raise _no_derivative()

    @staticmethod
    def jvp(ctx, *_tangents: Tensor) -> Tensor:
        raise _no_derivative()


def _no_derivative() -> RuntimeError:
    return RuntimeError(
        "the gate 'hard' is a step, its memory has no derivative: use gate='sigmoid', or keep the memory out of what "
        "is differentiated"
    )


def _check_classes(index: Tensor, *memories: Tensor | None) -> None:
    """Raise SelectionError for a class out of range; compiled code, which cannot look at values, computes NaN."""
    if torch.compiler.is_compiling():
        return
    # The tensor with the values of all samples that transforms have wrapped.
    while _functorch.is_functorch_wrapped_tensor(index):
        index = _functorch.get_unwrapped(index)
    check_classes(index, *memories)
