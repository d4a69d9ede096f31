"""The Triton kernels as a backend: on NVIDIA GPUs, and on the CPU where Triton interprets them (TRITON_INTERPRET=1)."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from memmod.ops import dispatch
from memmod.ops.serves import other_dtype, unserved

_KERNEL = "the Triton kernel"
# Tile and row numbers are 32 bits wide inside the kernels; addresses are not.
_ROWS = 2**31 - 2**16


def unusable() -> str | None:
    """Why there are no Triton kernels here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; `pip install triton` (Linux only)"
    if importlib.util.find_spec("memmod.kernels") is None:
        return "memmod.kernels is not installed; run `pip install --no-build-isolation .` in memmod's source folder"
    if interpreted():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    if torch.cuda.device_count() == 0:
        return "no NVIDIA GPU is visible, and TRITON_INTERPRET=1 was not set before the first import of triton"
    return None


def interpreted() -> bool:
    """Whether Triton interprets kernels on the CPU: decided when triton is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def register() -> None:
    """Register the kernels; they are imported at their first call."""
    reason = unusable()
    if reason is not None:
        dispatch.set_unavailable("triton", reason)
        return
    for op, supports in _SUPPORTS.items():
        module = op.removesuffix("_backward").removeprefix("modulated_").removeprefix("modulate_")
        dispatch.register(op, "triton", _lazily(f"memmod.kernels.{module}", op), supports)


def _lazily(module: str, op: str) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        # Kernels run on the current device.
        with torch.cuda.device(args[0].device if args[0].is_cuda else -1):
            return getattr(importlib.import_module(module), op)(*args)

    return run


def _unserved(x: Tensor, *memories: Tensor | None) -> str | None:
    if x.device.type == "cpu":
        if not interpreted():
            return (
                f"{_KERNEL} needs a CUDA tensor, x is on the CPU; set TRITON_INTERPRET=1 before Python starts to have "
                "Triton's interpreter run it there"
            )
        if x.dtype is torch.bfloat16:
            return f"{_KERNEL} is not interpreted in bf16, where Triton's interpreter gives wrong numbers"
    elif x.device.type != "cuda":
        return f"{_KERNEL} needs a CUDA tensor, x is on {x.device}"
    return unserved(_KERNEL, x, *memories)


def _too_many(x: Tensor, width: int) -> str | None:
    rows = x.numel() // max(1, width)
    return None if rows <= _ROWS else f"{_KERNEL} counts rows in 32 bits, and there are {rows}: split the batch"


def _supports_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, memory: Tensor | None, input_memory: Tensor | None, *rest: Any
) -> str | None:
    reason = _unserved(x, memory, input_memory) or other_dtype(_KERNEL, x, weight, bias)
    return reason or _too_many(x, weight.shape[-1] if weight.dim() == 2 else x.shape[1])


def _supports_backward(
    dy: Tensor,
    x_shape: Sequence[int],
    x: Tensor | None,
    weight: Tensor | None,
    memory: Tensor | None,
    input_memory: Tensor | None,
    index: Tensor,
    saved: Tensor | None,
    *rest: Any,
) -> str | None:
    reason = _unserved(dy, memory, input_memory) or other_dtype(_KERNEL, dy, x, weight, saved)
    # A linear layer's gradient has its units last; a convolution's call has its options before `needs`.
    return reason or _too_many(dy, dy.shape[1] if len(rest) > 3 else dy.shape[-1])


def _supports_output(x: Tensor, memory: Tensor, index: Tensor, dim: int, *rest: Any) -> str | None:
    if x.dim() < 2 or dim in (0, -x.dim()):
        return f"{_KERNEL} gates a dim behind the rows"
    return _unserved(x, memory)


def _supports_output_backward(
    dy: Tensor, saved: Tensor | None, memory: Tensor, index: Tensor, dim: int, *rest: Any
) -> str | None:
    reason = _supports_output(dy, memory, index, dim)
    return reason or (other_dtype(_KERNEL, dy, saved) if rest[-1][1] else None)


_SUPPORTS = {
    "modulated_linear": _supports_forward,
    "modulated_linear_backward": _supports_backward,
    "modulated_conv2d": _supports_forward,
    "modulated_conv2d_backward": _supports_backward,
    "modulate_output": _supports_output,
    "modulate_output_backward": _supports_output_backward,
}
