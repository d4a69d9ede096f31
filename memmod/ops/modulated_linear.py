"""memmod::modulated_linear: a linear layer whose units and inputs are gated by each sample's selection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memmod.ops import autograd as layer_autograd
from memmod.ops import dispatch
from memmod.ops.calls import LinearCall, LinearGradCall
from memmod.ops.define import check_classes, check_differentiable, define, define_autograd

NAME = "modulated_linear"


def _run(*args: Any) -> tuple[Tensor, Tensor]:
    call = LinearCall(*args)
    check_classes(call.index, call.memory, call.input_memory)
    return dispatch.call(NAME, call)


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    call = LinearCall(*args)
    y = call.x.new_empty(*call.x.shape[:-1], call.weight.shape[0])
    return y, torch.empty_like(y) if call.keep_gated and call.memory is not None else call.x.new_empty(0)


def _run_backward(*args: Any) -> tuple[Tensor, ...]:
    call = LinearGradCall(*args)
    check_differentiable(NAME, call.gate, memories=call.needs[3:])
    return dispatch.call(f"{NAME}_backward", call)


def _fake_backward(*args: Any) -> tuple[Tensor, ...]:
    call = LinearGradCall(*args)
    dy, memory, input_memory = call.dy, call.memory, call.input_memory
    need_dx, need_dweight, need_dbias, need_dmemory, need_dinput = call.needs
    units = dy.shape[-1]
    return (
        dy.new_empty(call.x_shape if need_dx else 0),
        dy.new_empty((units, call.x_shape[-1]) if need_dweight else 0),
        dy.new_empty(units if need_dbias else 0),
        memory.new_empty(memory.shape) if need_dmemory else dy.new_empty(0),
        input_memory.new_empty(input_memory.shape) if need_dinput else dy.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    layer_autograd.save(ctx, NAME, LinearCall(*inputs), output, dweight_reads_weight=False)


def _backward(ctx: Any, run: Callable[..., Any], dy: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = layer_autograd.backward(ctx, NAME, run, dy)
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
# Of the arguments of `LinearCall`.
apply = define_autograd(NAME, _run, _run_backward, _setup_context, _backward)
