"""The Triton kernels as a backend: on NVIDIA GPUs, and on the CPU where Triton interprets them (TRITON_INTERPRET=1)."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memmod.ops import dispatch
from memmod.ops.backends.gpu.ops import OPS
from memmod.ops.backends.limits import gpu_supports, unserved

_KERNEL = "the Triton kernel"
PRIMITIVES = "memmod.ops.backends.triton.primitives"


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
    for op, supports in gpu_supports(_KERNEL, _unserved).items():
        dispatch.register(op, "triton", _lazily(OPS[op]), supports)


def _lazily(op: Callable[..., Any]) -> Callable[[tuple], Any]:
    def run(call: tuple) -> Any:
        kernels = importlib.import_module(PRIMITIVES).TRITON
        # Kernels run on the current device.
        with torch.cuda.device(call[0].device if call[0].is_cuda else -1):
            return op(kernels, call)

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
