"""memmod::modulated_conv2d: a 2-d convolution whose output and input channels are gated by each sample's selection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from memmod.ops import autograd as layer_autograd
from memmod.ops import dispatch
from memmod.ops.calls import ConvCall, ConvGradCall
from memmod.ops.define import check_classes, check_differentiable, define, define_autograd
from memmod.ops.layout import conv_memory_format, conv_output_size

NAME = "modulated_conv2d"


def _run(*args: Any) -> tuple[Tensor, Tensor]:
    call = ConvCall(*args)
    check_classes(call.index, call.memory, call.input_memory)
    return dispatch.call(NAME, call)


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    call = ConvCall(*args)
    x, weight = call.x, call.weight
    size = conv_output_size(x.shape, weight.shape, call.stride, call.padding, call.dilation)
    y = torch.empty(
        (x.shape[0], weight.shape[0], *size),
        dtype=x.dtype,
        device=x.device,
        memory_format=conv_memory_format(x, weight),
    )
    return y, torch.empty_like(y) if call.keep_gated and call.memory is not None else x.new_empty(0)


def _run_backward(*args: Any) -> tuple[Tensor, ...]:
    call = ConvGradCall(*args)
    check_differentiable(NAME, call.gate, memories=call.needs[3:])
    return dispatch.call(f"{NAME}_backward", call)


def _fake_backward(*args: Any) -> tuple[Tensor, ...]:
    call = ConvGradCall(*args)
    dy, weight, memory, input_memory = call.dy, call.weight, call.memory, call.input_memory
    need_dx, need_dweight, need_dbias, need_dmemory, need_dinput = call.needs

    def empty(shape: Sequence[int], *layouts: Tensor | None) -> Tensor:
        return torch.empty(shape, dtype=dy.dtype, device=dy.device, memory_format=conv_memory_format(*layouts))

    return (
        empty(call.x_shape, dy, weight) if need_dx else dy.new_empty(0),
        empty(weight.shape, weight) if need_dweight else dy.new_empty(0),
        dy.new_empty(dy.shape[1] if need_dbias else 0),
        memory.new_empty(memory.shape) if need_dmemory else dy.new_empty(0),
        input_memory.new_empty(input_memory.shape) if need_dinput else dy.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    layer_autograd.save(ctx, NAME, ConvCall(*inputs), output, dweight_reads_weight=True)


def _backward(ctx: Any, run: Callable[..., Any], dy: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = layer_autograd.backward(ctx, NAME, run, dy)
    return *gradients, *[None] * 8


define(
    NAME,
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? memory, Tensor? input_memory, Tensor index, str gate, "
    "bool gate_bias, bool keep_gated, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups) "
    "-> (Tensor, Tensor)",
    _run,
    _fake,
)
define(
    f"{NAME}_backward",
    "(Tensor dy, SymInt[] x_shape, Tensor? x, Tensor? weight, Tensor? memory, Tensor? input_memory, Tensor index, "
    "Tensor? saved, str gate, bool gate_bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, "
    "bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
# Of the arguments of `ConvCall`.
apply = define_autograd(NAME, _run, _run_backward, _setup_context, _backward)
