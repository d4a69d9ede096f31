"""The compiled CPU kernels as a backend: what they serve, and how they are registered."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memmod.ops import dispatch
from memmod.ops.backends.cpu import extension
from memmod.ops.backends.limits import layout, other_dtype, unserved
from memmod.ops.calls import LayerCall, LayerGradCall, OutputCall, OutputGradCall

_KERNEL = "the CPU kernel"


def register() -> None:
    """Load the extension and register its kernels; `dispatch.availability()` tells why, if it cannot be loaded."""
    reason = extension.load()
    if reason is not None:
        dispatch.set_unavailable("cpu", reason)
        return
    for op, supports in _SUPPORTS.items():
        dispatch.register(op, "cpu", _unpacked(getattr(torch.ops.memmod_cpu, op).default), supports)


def _unpacked(op: Callable[..., Any]) -> Callable[[tuple], Any]:
    return lambda call: op(*call)


def _supports_layer(call: LayerCall) -> str | None:
    return _unserved(call.x, call.memory, call.input_memory) or other_dtype(_KERNEL, call.x, call.weight, call.bias)


def _supports_layer_backward(call: LayerGradCall) -> str | None:
    dy, need_dmemory = call.dy, call.needs[3]
    if math.prod(call.x_shape) == 0 and dy.numel() and need_dmemory:
        return "the CPU kernel has no memory gradient of a layer without inputs"
    reason = _unserved(dy, call.memory, call.input_memory)
    return reason or other_dtype(_KERNEL, dy, call.x, call.weight, call.saved)


def _supports_output(call: OutputCall) -> str | None:
    return _unserved(call.x, call.memory) or layout(_KERNEL, call.x, call.dim)


def _supports_output_backward(call: OutputGradCall) -> str | None:
    dy, saved, need_dmemory = call.dy, call.saved, call.needs[1]
    reason = _unserved(dy, call.memory) or layout(_KERNEL, dy, call.dim)
    if reason is None and need_dmemory and saved is not None:
        if saved.dtype != dy.dtype:
            return f"the gradient is {dy.dtype}, the saved output {saved.dtype}"
        if saved.is_contiguous() != dy.is_contiguous() or layout(_KERNEL, saved, call.dim) is not None:
            return "the gradient and the saved output differ in layout"
    return reason


_SUPPORTS = {
    "modulated_linear": _supports_layer,
    "modulated_linear_backward": _supports_layer_backward,
    "modulated_conv2d": _supports_layer,
    "modulated_conv2d_backward": _supports_layer_backward,
    "modulate_output": _supports_output,
    "modulate_output_backward": _supports_output_backward,
}


def _unserved(x: Tensor, *memories: Tensor | None) -> str | None:
    if x.device.type != "cpu":
        return f"the CPU kernel needs CPU tensors, x is on {x.device}"
    return unserved(_KERNEL, x, *memories)
