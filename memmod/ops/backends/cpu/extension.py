"""The compiled CPU extension: loaded when a backend is first asked for, or the reason why it cannot be."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

from memmod.ops.backends.build_info import PACKAGE, REBUILD, build_info


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


def load() -> str | None:
    """Load the extension; why it cannot be loaded, or None."""
    return unusable(PACKAGE) or _load(PACKAGE / build_info(PACKAGE)["extension"])


def module() -> ModuleType | None:
    """The extension's functions (csrc/cpu/torch/eager.cpp), or None where it was not loaded."""
    return _module


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
