"""The CUDA C++ kernels as a backend: loads the extension at the first op call, or records why it cannot be used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memmod.ops import cuda_layers, cuda_output, cuda_paths, dispatch
from memmod.ops.extension import PACKAGE, REBUILD, build_info
from memmod.ops.serves import other_dtype, unserved

_KERNEL = "the CUDA kernel"
# Rows are counted in 32 bits inside the kernels; addresses are not.
_ROWS = 2**31 - 2**16
# The type of the device whose tensors the loaded kernels take.
_device = "cuda"


def unusable(package: Path = PACKAGE) -> str | None:
    """Why the extension in `package` cannot be used here, or None if it can."""
    facts = (build_info(package) or {}).get("cuda") or {"reason": "memmod was not built"}
    name = facts.get("extension")
    if name is None:
        return f"memmod in {package} has no CUDA extension, because {facts['reason']}; {REBUILD}"
    if not (package / name).is_file():
        return f"the CUDA extension {package / name} is missing; {REBUILD}"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    if torch.cuda.device_count() == 0:
        return "no NVIDIA GPU is visible"
    return None


def register() -> None:
    """Load the extension and register its kernels; `dispatch.availability()` tells why, if it cannot be loaded."""
    reason = unusable()
    if reason is None:
        reason = load(PACKAGE / build_info()["cuda"]["extension"], "cuda")
    if reason is not None:
        dispatch.set_unavailable("cuda", reason)


def load(library: Path, device: str) -> str | None:
    """Load the kernels for tensors of that type of device, and register them; what went wrong, or None."""
    global _device
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return f"{library} cannot be loaded: {error}; {REBUILD}"
    _device = device
    for op, (run, supports) in _OPS.items():
        dispatch.register(op, "cuda", run, supports, cuda_paths.passes_over(op))
    return None


def device_type() -> str:
    """The type of the device whose tensors the kernels take: "cuda", or "cpu" where tests run them there."""
    return _device


def _unserved(x: Tensor, *memories: Tensor | None) -> str | None:
    if x.device.type != _device:
        return f"{_KERNEL} needs a {_device.upper()} tensor, x is on {x.device}"
    return unserved(_KERNEL, x, *memories)


def _too_many(x: Tensor, width: int) -> str | None:
    rows = max(x.numel() // max(1, width), math.prod(x.shape[:2]))
    return None if rows <= _ROWS else f"{_KERNEL} counts rows in 32 bits, and there are {rows}: split the batch"


def _supports_output(x: Tensor, memory: Tensor, index: Tensor, dim: int, *rest: Any) -> str | None:
    if x.dim() < 2 or dim in (0, -x.dim()):
        return f"{_KERNEL} gates a dim behind the rows"
    return _unserved(x, memory) or _too_many(x, x.shape[dim])


def _supports_output_backward(
    dy: Tensor, saved: Tensor | None, memory: Tensor, index: Tensor, dim: int, gate: str, needs: Sequence[bool]
) -> str | None:
    return _supports_output(dy, memory, index, dim) or (other_dtype(_KERNEL, dy, saved) if needs[1] else None)


def _supports_layer(
    x: Tensor, weight: Tensor, bias: Tensor | None, memory: Tensor | None, input_memory: Tensor | None, *rest: Any
) -> str | None:
    reason = _unserved(x, memory, input_memory) or other_dtype(_KERNEL, x, weight, bias)
    return reason or _too_many(x, weight.shape[-1] if weight.dim() == 2 else x.shape[1])


def _supports_layer_backward(
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


_OPS = {
    "modulated_linear": (cuda_layers.modulated_linear, _supports_layer),
    "modulated_linear_backward": (cuda_layers.modulated_linear_backward, _supports_layer_backward),
    "modulated_conv2d": (cuda_layers.modulated_conv2d, _supports_layer),
    "modulated_conv2d_backward": (cuda_layers.modulated_conv2d_backward, _supports_layer_backward),
    "modulate_output": (cuda_output.modulate_output, _supports_output),
    "modulate_output_backward": (cuda_output.modulate_output_backward, _supports_output_backward),
}
