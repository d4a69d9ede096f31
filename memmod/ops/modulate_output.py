"""memmod::modulate_output: any tensor, gated along its channels by each sample's selection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memmod.ops import dispatch
from memmod.ops.calls import OutputCall, OutputGradCall
from memmod.ops.define import check_classes, check_differentiable, define, define_autograd, saved_tensors

NAME = "modulate_output"


def _run(*args: Any) -> tuple[Tensor, Tensor]:
    call = OutputCall(*args)
    check_classes(call.index, call.memory)
    return dispatch.call(NAME, call)


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    call = OutputCall(*args)
    y = torch.empty_like(call.x)
    return y, torch.empty_like(y) if call.keep_gated else call.x.new_empty(0)


def _run_backward(*args: Any) -> tuple[Tensor, Tensor]:
    call = OutputGradCall(*args)
    check_differentiable(NAME, call.gate, memories=call.needs[1:])
    return dispatch.call(f"{NAME}_backward", call)


def _fake_backward(*args: Any) -> tuple[Tensor, Tensor]:
    call = OutputGradCall(*args)
    need_dx, need_dmemory = call.needs
    dx = torch.empty_like(call.dy) if need_dx else call.dy.new_empty(0)
    return dx, call.memory.new_empty(call.memory.shape if need_dmemory else 0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, memory, index, dim, gate, keep_gated = OutputCall(*inputs)
    y, saved = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(saved)
    if not ctx.needs_input_grad[1] or gate == "hard":
        kept = None
    elif gate == "identity":
        kept = x
    else:
        kept = saved if keep_gated else y
    ctx.save_for_backward(kept, memory, index)
    ctx.options = (dim, gate)


def _backward(ctx: Any, run: Callable[..., Any], dy: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 6
    kept, memory, index = saved_tensors(ctx, NAME)
    needs = list(ctx.needs_input_grad[:2])
    dx, dmemory = run(dy, kept, memory, index, *ctx.options, needs)
    return dx if needs[0] else None, dmemory if needs[1] else None, None, None, None, None


define(
    NAME,
    "(Tensor x, Tensor memory, Tensor index, int dim, str gate, bool keep_gated) -> (Tensor, Tensor)",
    _run,
    _fake,
)
define(
    f"{NAME}_backward",
    "(Tensor dy, Tensor? saved, Tensor memory, Tensor index, int dim, str gate, bool[] needs) -> (Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
# Of the arguments of `OutputCall`.
apply = define_autograd(NAME, _run, _run_backward, _setup_context, _backward)
