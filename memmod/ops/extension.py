"""The compiled CPU extension as a backend: loads it at the first op call, or records why it cannot be used."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from memmod.ops import dispatch
from memmod.ops.serves import layout, other_dtype, unserved

PACKAGE = Path(__file__).resolve().parent.parent
_KERNEL = "the CPU kernel"
REBUILD = "run `pip install --no-build-isolation .` in memmod's source folder"


def build_info(package: Path = PACKAGE) -> dict[str, Any] | None:
    """What the build wrote beside the extension (its file, torch version, compiler, flags), or None if unreadable."""
    try:
        info = json.loads((package / "_build_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return info if _is_build_info(info) else None


def _is_build_info(info: Any) -> bool:
    """Whether the fields that memmod reads have their types; this file is read before any library that would say so."""
    if not isinstance(info, dict):
        return False
    cuda = info.get("cuda", {})
    if cuda is None:
        cuda = {}
    if not isinstance(cuda, dict):
        return False
    texts = [info.get("torch"), *(part.get(key) for part in (info, cuda) for key in ("extension", "reason"))]
    names = [part["extension"] for part in (info, cuda) if isinstance(part.get("extension"), str)]
    built_for = cuda.get("architectures", [])
    return (
        all(text is None or isinstance(text, str) for text in texts)
        and all(re.fullmatch(r"\w[^/\0]*", name) for name in names)
        and isinstance(built_for, list)
        and all(isinstance(one, str) and re.fullmatch(r"\d+\.\d+[af]?(\+PTX)?", one) for one in built_for)
        and (not cuda or bool(cuda.get("reason") if cuda.get("extension") is None else built_for))
    )


def unusable(package: Path = PACKAGE) -> str | None:
    """Why the extension in `package` cannot be loaded by this torch, or None if it can."""
    info = build_info(package)
    if info is None:
        return f"memmod in {package} was not built; {REBUILD}"
    name = info.get("extension")
    if not name:
        return f"memmod in {package} has no compiled extension, because {info.get('reason')}; {REBUILD}"
    if not (package / name).is_file():
        return f"the compiled extension {package / name} is missing; {REBUILD}"
    if info.get("torch") != torch.__version__:
        return f"it was built for torch {info.get('torch')}, and this is torch {torch.__version__}; {REBUILD}"
    return None


def register() -> None:
    """Load the extension and register its kernels; `dispatch.availability()` tells why, if it cannot be loaded."""
    global _module
    reason = unusable(PACKAGE) or _load(PACKAGE / build_info(PACKAGE)["extension"])
    if reason is not None:
        dispatch.set_unavailable("cpu", reason)
        return
    for op, supports in _SUPPORTS.items():
        dispatch.register(op, "cpu", getattr(torch.ops.memmod_cpu, op).default, supports)


def module() -> ModuleType | None:
    """The extension's functions (csrc/cpu/torch/eager.cpp) if calls on the CPU are to run on it, else None."""
    dispatch.load()
    return _module if dispatch.get_backend() in (None, "cpu") else None


def packed_bytes() -> int:
    """Bytes of weights that the CPU kernels keep in their own order, beside the weights themselves.

    A weight is packed when a layer first runs, once for the forward and once for the backward, 4 bytes an element each
    (with AMX 6 in fp32 and 2 in bf16); anew when it has changed; and freed with it.
    """
    return 0 if _module is None else _module.packed_bytes()


def isa() -> str | None:
    """What the CPU kernels use: "amx", "avx512_bf16", "avx512", "avx2" or "portable"; None without the extension.

    MEMMOD_CPU_ISA names a lesser one than the processor's best.
    """
    return None if _module is None else _module.isa()


_module: ModuleType | None = None


def _load(library: Path) -> str | None:
    global _module
    try:
        spec = importlib.util.spec_from_file_location("memmod._cpu", library)
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        sys.modules[spec.name] = loaded
    except (ImportError, OSError, RuntimeError) as error:
        return f"{library} cannot be loaded: {error}; {REBUILD}"
    _module = loaded
    return None


def _supports_linear(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> str | None:
    return _unserved(x, *rest[:2]) or other_dtype(_KERNEL, x, weight, bias)


def _supports_linear_backward(
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
    if math.prod(x_shape) == 0 and dy.numel() and rest[-1][3]:
        return "the CPU kernel has no memory gradient of a layer without inputs"
    return _unserved(dy, memory, input_memory) or other_dtype(_KERNEL, dy, x, weight, saved)


def _supports_output(x: Tensor, memory: Tensor, index: Tensor, dim: int, gate: str, keep_gated: bool) -> str | None:
    return _unserved(x, memory) or layout(_KERNEL, x, dim)


def _supports_output_backward(
    dy: Tensor, saved: Tensor | None, memory: Tensor, index: Tensor, dim: int, gate: str, needs: Sequence[bool]
) -> str | None:
    reason = _unserved(dy, memory) or layout(_KERNEL, dy, dim)
    if reason is None and needs[1] and saved is not None:
        if saved.dtype != dy.dtype:
            return f"the gradient is {dy.dtype}, the saved output {saved.dtype}"
        if saved.is_contiguous() != dy.is_contiguous() or layout(_KERNEL, saved, dim) is not None:
            return "the gradient and the saved output differ in layout"
    return reason


_SUPPORTS = {
    "modulated_linear": _supports_linear,
    "modulated_linear_backward": _supports_linear_backward,
    "modulated_conv2d": _supports_linear,
    "modulated_conv2d_backward": _supports_linear_backward,
    "modulate_output": _supports_output,
    "modulate_output_backward": _supports_output_backward,
}


def _unserved(x: Tensor, *memories: Tensor | None) -> str | None:
    if x.device.type != "cpu":
        return f"the CPU kernel needs CPU tensors, x is on {x.device}"
    return unserved(_KERNEL, x, *memories)
