"""Compiles the CUDA kernels for the CPU, under the host shim: `python -m tests.cuda_host.build [plain|asan|tsan ...]`."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build/cuda_host"
SHIM = ROOT / "tests/cuda_host"
# No contraction: a·b + c would round in vectors and in the numbers behind them differently.
FLAGS = ["-std=c++20", "-fPIC", "-g1", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off"]
# Vectors of 16 bytes are read as they are declared: no aliasing rule of C++ covers that.
FLAGS += ["-fno-strict-aliasing", "-DMEMMOD_HOST", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
# How the kernels are compiled, and the macro that tells the shim; the shim itself is never instrumented.
KINDS = {
    "plain": (["-O2"], []),
    "asan": (
        ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"],
        ["-DMEMMOD_HOST_ASAN"],
    ),
    "tsan": (["-O1", "-fsanitize=thread", "-fno-omit-frame-pointer"], ["-DMEMMOD_HOST_TSAN"]),
}


def sources() -> dict[str, str]:
    """The files under csrc/ that the kernels are made of, by their path there."""
    files = [*(ROOT / "csrc/cuda").iterdir(), *(ROOT / "csrc/include").iterdir()]
    return {str(file.relative_to(ROOT / "csrc")): file.read_text() for file in sorted(files)}


def compile_extension(kind: str, files: Mapping[str, str]) -> Path:
    """The shared library of these sources; compiled once, whichever process comes first."""
    shim = {file.name: file.read_text() for file in (SHIM / "host.h", SHIM / "host.cpp")}
    text = repr((kind, KINDS[kind], FLAGS, torch.__version__, sorted(files.items()), sorted(shim.items())))
    folder = BUILD / kind / hashlib.sha256(text.encode()).hexdigest()[:16]
    library = folder / "libmemmod_cuda_host.so"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _compile(kind, files, folder, library)
    return library


def _compile(kind: str, files: Mapping[str, str], folder: Path, library: Path) -> None:
    options, macros = KINDS[kind]
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    torch_root = Path(torch.__file__).parent
    include = [f"-I{folder / 'include'}", f"-I{SHIM}", f"-isystem{torch_root / 'include'}"]
    compiled = [folder / name for name in files if name.startswith("cuda/") and name.endswith((".cu", ".cpp"))]

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.name}.o"
        own = ["-O2"] if source.parent == SHIM else options
        _run("g++", *FLAGS, *own, *macros, *include, "-x", "c++", "-c", str(source), "-o", str(target))
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, [SHIM / "host.cpp", *compiled]))
    partial = library.with_suffix(".tmp")
    libraries = [f"-L{torch_root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    _run("g++", "-shared", *options, *map(str, objects), *libraries, "-o", str(partial))
    partial.replace(library)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def preload(kind: str) -> str:
    """LD_PRELOAD for Python, which is not instrumented: the sanitizer's library, and the exceptions' that it watches."""
    names = {"asan": ["asan", "stdc++"], "tsan": ["tsan", "stdc++"]}.get(kind, [])
    found = []
    for name in names:
        path = subprocess.run(["g++", f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True)
        found.append(path.stdout.strip())
    return " ".join(found)


if __name__ == "__main__":
    for name in sys.argv[1:] or KINDS:
        with contextlib.suppress(BrokenPipeError):
            print(compile_extension(name, sources()))
