"""The compiled CPU extension as a backend: loads it at the first op call, or records why it cannot be used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memmod.ops import dispatch

PACKAGE = Path(__file__).resolve().parent.parent
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_REBUILD = "run `pip install --no-build-isolation .` in memmod's source folder"


def build_info(package: Path = PACKAGE) -> dict[str, Any] | None:
    """What the build wrote beside the extension (its file, torch version, compiler, flags), or None if unreadable."""
    try:
        info = json.loads((package / "_build_info.json").read_text())
    except (OSError, ValueError):
        return None
    return info if isinstance(info, dict) else None


def unusable(package: Path = PACKAGE) -> str | None:
    """Why the extension in `package` cannot be loaded by this torch, or None if it can."""
    info = build_info(package)
    if info is None:
        return f"memmod in {package} was not built; {_REBUILD}"
    name = info.get("extension")
    if not name:
        return f"memmod in {package} has no compiled extension, because {info.get('reason')}; {_REBUILD}"
    if not (package / name).is_file():
        return f"the compiled extension {package / name} is missing; {_REBUILD}"
    if info.get("torch") != torch.__version__:
        return f"it was built for torch {info.get('torch')}, and this is torch {torch.__version__}; {_REBUILD}"
    return None


def register() -> None:
    """Load the extension and register its kernels; `dispatch.availability()` tells why, if it cannot be loaded."""
    reason = unusable(PACKAGE) or _load(PACKAGE / build_info(PACKAGE)["extension"])
    if reason is not None:
        dispatch.set_unavailable("cpu", reason)
        return
    ops = torch.ops.memmod_cpu
    dispatch.register("modulate_output", "cpu", ops.modulate_output.default, _supports_forward)
    dispatch.register("modulate_output_backward", "cpu", ops.modulate_output_backward.default, _supports_backward)


def _load(library: Path) -> str | None:
    try:
        torch.ops.load_library(library)
    except (OSError, RuntimeError) as error:
        return f"{library} cannot be loaded: {error}; {_REBUILD}"
    return None


def _supports_forward(x: Tensor, memory: Tensor, index: Tensor, dim: int, gate: str, keep_gated: bool) -> str | None:
    return _unserved(x, memory, dim, gate)


def _supports_backward(
    dy: Tensor, saved: Tensor | None, memory: Tensor, index: Tensor, dim: int, gate: str, needs: Sequence[bool]
) -> str | None:
    reason = _unserved(dy, memory, dim, gate)
    if reason is None and needs[1] and saved is not None:
        if saved.dtype != dy.dtype:
            return f"the gradient is {dy.dtype}, the saved output {saved.dtype}"
        if saved.is_contiguous() != dy.is_contiguous() or _layout(saved, dim) is not None:
            return "the gradient and the saved output differ in layout"
    return reason


def _unserved(x: Tensor, memory: Tensor, dim: int, gate: str) -> str | None:
    if gate != "sigmoid":
        return f"the CPU kernel has the gate 'sigmoid' only, not {gate!r}"
    if x.device.type != "cpu":
        return f"the CPU kernel needs CPU tensors, x is on {x.device}"
    if x.dtype not in _DTYPES or memory.dtype != torch.float32:
        return f"the CPU kernel serves fp32, bf16 and fp16 with an fp32 memory, not {x.dtype} with {memory.dtype}"
    if torch.is_grad_enabled() and (x.requires_grad or memory.requires_grad):
        return "the CPU kernel is not recorded by autograd: call the op torch.ops.memmod.modulate_output"
    return _layout(x, dim)


def _layout(x: Tensor, dim: int) -> str | None:
    if x.dim() < 2 or dim in (0, -x.dim()):
        return "the CPU kernel gates a dim behind the rows"
    if x.is_contiguous():
        return None
    if x.dim() == 4 and dim in (1, -3) and x.is_contiguous(memory_format=torch.channels_last):
        return None
    return f"the CPU kernel needs contiguous or channels_last tensors, not strides {x.stride()}"
