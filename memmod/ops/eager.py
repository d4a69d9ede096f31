"""The ops as autograd functions in C++ (csrc/cpu/torch/eager.cpp): eager calls of the CPU's and of the CUDA kernels,
without what the dispatcher and Python cost per call."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from torch import Tensor

from memmod.ops import define, dispatch
from memmod.ops.backends import gpu_policy
from memmod.ops.backends.cpu import extension
from memmod.ops.backends.cuda import policy
from memmod.ops.calls import ConvCall, LinearCall

Serve = Callable[..., "Tensor | None"]


def register(unavailable: Collection[str]) -> None:
    """Register the functions of the backends that are there."""
    module = extension.module()
    if module is None:
        return
    functions = {"modulated_linear": module.linear, "modulated_conv2d": module.conv2d, "modulate_output": module.output}
    for op, serve in functions.items():
        if "cpu" not in unavailable:
            dispatch.register_eager(op, "cpu", "cpu", serve)
        if "cuda" not in unavailable:
            dispatch.register_eager(op, "cuda", "cuda", on_gpu(op, serve))


def on_gpu(op: str, serve: Serve) -> Serve:
    """`serve` for the calls that backend cuda computes by the library's product, or by its kernel for few rows."""
    return partial(_ON_GPU[op], serve)


def _linear(serve: Serve, *args: Any) -> Tensor | None:
    x, weight, index = args[0], args[1], args[5]
    if x.dim() < 2 or weight.dim() != 2 or index.dim() < 1:
        return None
    call = LinearCall(*args[:9])
    # The function takes its own kernels wherever it can.
    if policy.many_rows(call, None):
        return serve(*args) if _nothing_else() else None
    if _left_to_the_op("modulated_linear", call):
        return None
    if x.numel() <= policy.SMALL_ROWS * weight.shape[1] and not policy.few_rows(call):
        return None
    return serve(*args)


def _conv2d(serve: Serve, *args: Any) -> Tensor | None:
    x, weight, index = args[0], args[1], args[5]
    if x.dim() != 4 or weight.dim() != 4 or index.dim() < 1:
        return None
    # A ReLU (args[9]) is no part of the op.
    call = ConvCall(*args[:9], *args[10:])
    if policy.pointwise(call, None):
        return serve(*args) if _nothing_else() else None
    if _left_to_the_op("modulated_conv2d", call) or not policy.by_library(call):
        return None
    return serve(*args)


def _output(serve: Serve, *args: Any) -> Tensor | None:
    return None if define.CHECK_ON_DEVICE else serve(*args)


_ON_GPU = {"modulated_linear": _linear, "modulated_conv2d": _conv2d, "modulate_output": _output}


def _nothing_else() -> bool:
    """Whether no path is forced, and classes are not checked on the device."""
    return gpu_policy.forced() is None and not define.CHECK_ON_DEVICE


def _left_to_the_op(op: str, call: LinearCall | ConvCall) -> bool:
    """Whether classes are checked on the device, kernels are forced, or another backend is the better choice."""
    if define.CHECK_ON_DEVICE or gpu_policy.forced() not in (None, "unfused"):
        return True
    return dispatch.get_backend() is None and _passes_over[op](call) is not None


_passes_over = {op: policy.passes_over(op) for op in ("modulated_linear", "modulated_conv2d")}
