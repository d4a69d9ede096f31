"""Compiles the CUDA kernels for the CPU, under the host shim: `python -m tests.cuda.build [plain|asan|tsan]`."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build/cuda_host"
SHIM = ROOT / "tests/cuda"
# No contraction: a·b + c would round in vectors and in the numbers behind them differently.
FLAGS = ["-std=c++20", "-fPIC", "-g1", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off"]
# Vectors of 16 bytes are read as they are declared: no aliasing rule of C++ covers that.
FLAGS += ["-fno-strict-aliasing", "-DMEMMOD_HOST", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
# How the kernels are compiled, and the macro that tells the shim; the shim itself is never instrumented.
KINDS = {
    "plain": (["-O2"], ["-DON_ASAN(...)=", "-DON_TSAN(...)="]),
    "asan": (
        ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"],
        ["-DON_ASAN(...)=__VA_ARGS__", "-DON_TSAN(...)="],
    ),
    "tsan": (
        ["-O1", "-fsanitize=thread", "-fno-omit-frame-pointer"],
        ["-DON_ASAN(...)=", "-DON_TSAN(...)=__VA_ARGS__"],
    ),
}


@functools.cache
def compiler() -> str:
    """What the compiler says of itself, its version."""
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout


def sources() -> dict[str, str]:
    """The files that the kernels are made of, by their path under csrc/, and the tests' own kernels."""
    files = [path for path in (ROOT / "csrc/cuda").rglob("*") if path.is_file()]
    own = {"cuda/wrappers.cu": (SHIM / "wrappers.cu").read_text()}
    return own | {str(file.relative_to(ROOT / "csrc")): file.read_text() for file in sorted(files)}


def compile_extension(kind: str, files: Mapping[str, str]) -> Path:
    """The shared library of these sources; every part is compiled once, whichever process comes first,
    for the same sources, options, compiler and torch."""
    BUILD.mkdir(parents=True, exist_ok=True)
    options, macros = KINDS[kind]
    headers = {name: text for name, text in files.items() if name.startswith("cuda/include/")}
    headers["cuda/include/host.h"] = (SHIM / "host.h").read_text()
    folder = BUILD / _hash(headers)
    with locked(folder):
        for name, text in headers.items():
            _write(folder / name, text)
    library_options = [f"-I{folder / 'cuda/include'}", f"-isystem{Path(torch.__file__).parent / 'include'}"]

    def compile_one(name: str, text: str, own: list[str]) -> Path:
        command = ["g++", *FLAGS, *own, *macros, *library_options, "-x", "c++"]
        target = folder / f"{_hash((kind, command, compiler(), torch.__version__, text))}.o"
        with locked(target):
            if not target.exists():
                source = target.with_suffix(f".{Path(name).name}")
                _write(source, text)
                partial = target.with_suffix(".o.tmp")
                _run(*command, "-c", str(source), "-o", str(partial))
                partial.replace(target)
        return target

    parts = [("host.cpp", (SHIM / "host.cpp").read_text(), ["-O2"])]
    parts += [(n, text, options) for n, text in files.items() if n.endswith((".cu", ".cpp"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [str(path) for path in pool.map(lambda part: compile_one(*part), parts)]
    library = folder / f"{_hash((kind, objects))}.so"
    with locked(library):
        if not library.exists():
            partial = library.with_suffix(".so.tmp")
            libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
            _run("g++", "-shared", *options, *objects, *libraries, "-o", str(partial))
            partial.replace(library)
    return library


def _hash(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        partial = path.with_name(f"{path.name}.tmp")
        partial.write_text(text)
        partial.replace(path)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time makes `path`."""
    with open(path.parent / f"{path.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def preload(kind: str) -> str:
    """LD_PRELOAD for Python, which is not instrumented: the sanitizer, and the library whose exceptions it watches."""
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
