"""memmod::modulated_conv2d: a 2-d convolution whose output and input channels are gated by each sample's selection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memmod.ops import autograd as layer_autograd
from memmod.ops import dispatch
from memmod.ops.define import check_classes, check_differentiable, define, define_autograd
from memmod.ops.layout import conv_memory_format, conv_output_size

NAME = "modulated_conv2d"


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    memory: Tensor | None,
    input_memory: Tensor | None,
    index: Tensor,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    check_classes(index, memory, input_memory)
    return dispatch.call(NAME, x, weight, bias, memory, input_memory, index, *options)


def _fake(
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
    size = conv_output_size(x.shape, weight.shape, stride, padding, dilation)
    y = torch.empty(
        (x.shape[0], weight.shape[0], *size),
        dtype=x.dtype,
        device=x.device,
        memory_format=conv_memory_format(x, weight),
    )
    return y, torch.empty_like(y) if keep_gated and memory is not None else x.new_empty(0)


def _run_backward(*args: Any) -> tuple[Tensor, ...]:
    check_differentiable(NAME, gate=args[8], needs=args[-1])
    return dispatch.call(f"{NAME}_backward", *args)


def _fake_backward(
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
) -> tuple[Tensor, ...]:

    def empty(shape: Sequence[int], *layouts: Tensor | None) -> Tensor:
        return torch.empty(shape, dtype=dy.dtype, device=dy.device, memory_format=conv_memory_format(*layouts))

    return (
        empty(x_shape, dy, weight) if needs[0] else dy.new_empty(0),
        empty(weight.shape, weight) if needs[1] else dy.new_empty(0),
        dy.new_empty(dy.shape[1] if needs[2] else 0),
        memory.new_empty(memory.shape) if needs[3] else dy.new_empty(0),
        input_memory.new_empty(input_memory.shape) if needs[4] else dy.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    layer_autograd.save(ctx, NAME, inputs, output, dweight_reads_weight=True)


def _backward(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = layer_autograd.backward(ctx, NAME, torch.ops.memmod.modulated_conv2d_backward.default, dy)
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
define_autograd(NAME, _setup_context, _backward)
