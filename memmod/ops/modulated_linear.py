"""memmod::modulated_linear: a linear layer whose units and inputs are gated by each sample's selection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memmod.ops import autograd as layer_autograd
from memmod.ops import dispatch
from memmod.ops.define import check_classes, check_differentiable, define, define_autograd

NAME = "modulated_linear"


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
) -> tuple[Tensor, Tensor]:
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
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
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    units = dy.shape[-1]
    return (
        dy.new_empty(x_shape if needs[0] else 0),
        dy.new_empty((units, x_shape[-1]) if needs[1] else 0),
        dy.new_empty(units if needs[2] else 0),
        memory.new_empty(memory.shape) if needs[3] else dy.new_empty(0),
        input_memory.new_empty(input_memory.shape) if needs[4] else dy.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    layer_autograd.save(ctx, NAME, inputs, output, dweight_reads_weight=False)


def _backward(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = layer_autograd.backward(ctx, NAME, torch.ops.memmod.modulated_linear_backward.default, dy)
    return *gradients, None, None, None, None


define(
    NAME,
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? memory, Tensor? input_memory, Tensor index, str gate, "
    "bool gate_bias, bool keep_gated) -> (Tensor, Tensor)",
    _run,
    _fake,
)
define(
    f"{NAME}_backward",
    "(Tensor dy, SymInt[] x_shape, Tensor? x, Tensor? weight, Tensor? memory, Tensor? input_memory, Tensor index, "
    "Tensor? saved, str gate, bool gate_bias, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
define_autograd(NAME, _setup_context, _backward)
