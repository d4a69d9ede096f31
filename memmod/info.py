"""What memmod runs on: versions, where it was loaded from, and which backends are available or why not.

`python -m memmod.info` prints it; `collect()` returns it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any


def collect() -> dict[str, Any]:
    """All facts by name, as plain strings, numbers, dicts or None; opens no GPU, only asks how many there are."""
    import torch

    import memmod
    from memmod.ops import dispatch
    from memmod.ops.backends.build_info import PACKAGE, build_info
    from memmod.ops.backends.cpu.extension import isa, packed_bytes

    backends = dispatch.availability()
    return {
        "memmod": memmod.__version__,
        "loaded_from": str(PACKAGE),
        "shadowed": shadowed(PACKAGE),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "timm": _version("timm"),
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
        "gpus": torch.cuda.device_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "forced_backend": dispatch.get_backend(),
        "cpu_kernels": isa(),
        "packed_bytes": packed_bytes(),
        "backends": backends,
        "build": build_info(),
    }


def shadowed(package: Path) -> str | None:
    """Why `package` is the wrong memmod: a source folder without extension, before an installed one; else None."""
    if any(package.glob("_cpu*.so")):
        return None
    entries = [Path(entry or os.curdir).resolve() for entry in sys.path]
    others = [entry / "memmod" for entry in entries if (entry / "memmod").resolve() != package]
    installed = next((other for other in others if any(other.glob("_cpu*.so"))), None)
    if installed is None:
        return None
    return (
        f"memmod was loaded from {package}, which has no compiled extension, instead of from {installed}: run from "
        "another folder, or install the source folder itself with `pip install --no-build-isolation -e .`"
    )


def main() -> None:
    """Print the facts, one per line, the backends and the build of both extensions indented below their names."""
    facts = collect()
    backends, build = facts.pop("backends"), facts.pop("build")
    warning = facts.pop("shadowed")
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):<15} {'none' if value is None else value}")
    print("backends")
    for name, reason in backends.items():
        print(f"  {name:<13} {'available' if reason is None else f'not available: {reason}'}")
    build = build or {"extension": "memmod was not built here"}
    cuda = build.pop("cuda", None)
    _print_build("build", build)
    if cuda:
        _print_build("CUDA build", cuda)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)


def _print_build(title: str, facts: dict[str, Any]) -> None:
    print(title)
    for name, value in facts.items():
        shown = " ".join(value) if isinstance(value, list) else "none" if value is None else value
        print(f"  {name:<13} {shown}")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
