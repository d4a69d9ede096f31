"""The compiled CPU extension as a backend: loads it at the first op call, or records why it cannot be used."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from memmod.ops import dispatch
from memmod.ops.backends.build_info import PACKAGE, REBUILD, build_info
from memmod.ops.backends.limits import layout, other_dtype, unserved
from memmod.ops.calls import LayerCall, LayerGradCall, OutputCall, OutputGradCall

_KERNEL = "the CPU kernel"


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
