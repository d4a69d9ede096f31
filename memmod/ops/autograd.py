"""What modulated linear and conv layers save for their backward, and how they call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from memmod.errors import SelectionError
from memmod.ops.calls import LayerCall
from memmod.ops.define import saved_tensors


def save(ctx: Any, name: str, call: LayerCall, output: tuple[Tensor, Tensor], dweight_reads_weight: bool) -> None:
    """Save only what the gradients asked for will read; of the output's size, that is y or g, and only for dmemory."""
    need_dx, need_dweight, need_dbias, need_dmemory, need_dinput = ctx.needs_input_grad[:5]
    y, saved = output
    if need_dmemory and not call.keep_gated and not output_is_enough(call.gate, call.gate_bias, call.bias is not None):
        raise SelectionError(
            f"memmod::{name}: with gate={call.gate!r} and gate_bias={call.gate_bias} the memory's gradient needs more "
            "than the output: pass keep_gated=True"
        )
    reads_gates = need_dx or need_dinput or need_dweight or (need_dbias and call.gate_bias)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(saved)
    ctx.save_for_backward(
        call.x if need_dweight or need_dinput else None,
        call.weight if need_dx or need_dinput or (need_dweight and dweight_reads_weight) else None,
        call.memory if need_dmemory or reads_gates else None,
        call.input_memory if need_dinput or reads_gates else None,
        call.index,
        None if not need_dmemory or call.gate == "hard" else saved if call.keep_gated else y,
    )
    ctx.x_shape = call.x.shape
    ctx.options = (call.gate, call.gate_bias, *(call.conv or ()))


def output_is_enough(gate: str, gate_bias: bool, has_bias: bool) -> bool:
    """Whether y alone gives the memory's gradient: it is the gated part itself, and the gate is not the identity.

    The hard gate's memory has no gradient at all.
    """
    return gate == "hard" or (gate != "identity" and (gate_bias or not has_bias))


def backward(ctx: Any, name: str, op: Callable[..., Any], dy: Tensor | None) -> list[Tensor | None]:
    """The gradients of (x, weight, bias, memory, input_memory), None where not asked for."""
    needs = list(ctx.needs_input_grad[:5])
    if dy is None:
        return [None] * 5
    x, weight, memory, input_memory, index, saved = saved_tensors(ctx, name)
    gradients = op(dy, ctx.x_shape, x, weight, memory, input_memory, index, saved, *ctx.options, needs)
    return [gradient if need else None for gradient, need in zip(gradients, needs, strict=True)]
