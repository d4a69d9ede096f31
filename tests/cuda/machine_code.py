"""The CUDA kernels compiled by nvcc for each architecture, without a GPU, and what their machine code shows."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from tests.cuda.build import locked
from tests.triton.aot import ATOMICS, TOOLS

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build/machine_code"
TOUCH, GOLDEN = ROOT / "tests/cuda/touch.cu", ROOT / "tests/cuda/touch.ptx"
ARCHITECTURES = (80, 90, 100)
# Those of setup.py.
FLAGS = ("-O3", "-std=c++20", "-DTORCH_TARGET_VERSION=0x020a000000000000")


class Facts(NamedTuple):
    """One kernel for one architecture."""

    name: str
    """as in "conv2d_kernel<float, false, true, 3>\""""
    registers: int
    stack: int
    spills: int
    shared: int
    """bytes of a block, static ones"""
    code: tuple[str, ...]
    """mnemonics of its instructions"""

    def count(self, pattern: str) -> int:
        return sum(re.match(pattern, mnemonic) is not None for mnemonic in self.code)


def release() -> str | None:
    """nvcc's release, such as "13.0", or None without an nvcc."""
    if shutil.which("nvcc") is None:
        return None
    said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release ([0-9.]+)", said)[1]


def kernels() -> list[Path]:
    return sorted((ROOT / "csrc/cuda").glob("*.cu"))


def nvcc(source: Path, *options: str) -> tuple[str, Path]:
    """(what nvcc printed, the file it wrote); compiled once for the same sources, options and release."""
    headers = sorted((ROOT / "csrc/cuda/include").iterdir())
    text = repr([release(), FLAGS, options, torch.__version__, *(file.read_text() for file in (source, *headers))])
    target = BUILD / f"{source.stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    log = target.with_suffix(".log")
    BUILD.mkdir(parents=True, exist_ok=True)
    # Two test processes want the same files, and one must not read what the other has half written.
    with locked(target):
        if not log.exists():
            include = [f"-I{ROOT / 'csrc/cuda/include'}", f"-I{Path(torch.__file__).parent / 'include'}"]
            command = ["nvcc", *FLAGS, *include, *options, str(source), "-o", str(target)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
            beside = log.with_suffix(".tmp")
            beside.write_text(done.stdout + done.stderr)
            beside.replace(log)
    return log.read_text(), target


def facts(source: Path, arch: int) -> list[Facts]:
    """Every kernel of a file."""
    # As setup.py compiles them.
    code_of = "90a" if arch == 90 else str(arch)
    log, cubin = nvcc(source, "-Xptxas", "-v", f"-gencode=arch=compute_{code_of},code=sm_{code_of}", "-cubin")
    command = [TOOLS / "cuobjdump", "-sass", cubin]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    code: dict[str, list[str]] = {}
    for line in listing.splitlines():
        if function := re.search(r"Function : (\S+)", line):
            body = code.setdefault(function[1], [])
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?([A-Z][\w.]*)", line):
            body.append(instruction[1])
    assert code and all({"EXIT", "BPT.TRAP"} & {*body} for body in code.values()), "the disassembly has another form"
    found = []
    for part in log.split("Compiling entry function '")[1:]:
        symbol = part.partition("'")[0]
        numbers = [
            int(number) for number in re.search(r"(\d+) bytes stack.*, (\d+) bytes spill s.*, (\d+)", part).groups()
        ]
        shared = re.search(r"(\d+) bytes smem", part)
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        size = int(shared[1]) if shared else 0
        found.append(Facts(_name(symbol), registers, numbers[0], sum(numbers[1:]), size, tuple(code[symbol])))
    return sorted(found)


@functools.cache
def _name(symbol: str) -> str:
    plain = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout
    plain = re.sub(r"\(anonymous namespace\)::|memmod::|c10::|^void ", "", plain.strip())
    return plain.partition("(")[0]


def problems(kernel: Facts) -> list[str]:
    """What is wrong with a kernel's code; its name says what it has to have."""
    name, _, arguments = kernel.name.partition("<")
    arguments = arguments.rstrip(">").split(", ")
    wrong = []
    if kernel.spills or kernel.stack:
        wrong.append(f"spills: {kernel.spills} bytes, and {kernel.stack} bytes of stack")
    if count := kernel.count(r"LDL|STL"):
        wrong.append(f"{count} accesses to local memory")
    if count := sum(mnemonic.partition(".")[0] in ATOMICS for mnemonic in kernel.code):
        wrong.append(f"{count} atomics on global memory")
    if name == "conv2d_kernel" and not kernel.count("HMMA"):
        wrong.append("no tensor-core instruction")
    # For another architecture it is a trap.
    if name == "linear_fused_kernel" and not kernel.count("BPT"):
        needed = (rf"HGMMA\.64x{arguments[-1]}x16", "UTMALDG", "UTMASTG", "USETMAXREG")
        wrong += [f"no {instruction}" for instruction in needed if not kernel.count(instruction)]
    vectors = arguments[-1] not in ("", "1")
    wide = {
        "conv2d_kernel": ("LDGSTS",) if arguments[2:3] == ["true"] else (),
        "modulate_lines_kernel": ("LDG", "STG"),
        "modulate_rows_kernel": ("LDG", "STG") if vectors else (),
        "linear_small_kernel": ("LDG",) if vectors else (),
    }
    wrong += [f"no {access} of 128 bits" for access in wide.get(name, ()) if not kernel.count(rf"{access}\..*\b128\b")]
    return wrong


def every_kernel() -> dict[int, list[Facts]]:
    """All kernels, by architecture."""
    jobs = [(source, arch) for arch in ARCHITECTURES for source in kernels()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda job: facts(*job), jobs))
    found: dict[int, list[Facts]] = {arch: [] for arch in ARCHITECTURES}
    for (_, arch), some in zip(jobs, results, strict=True):
        found[arch] += some
    return found


def section(found: dict[int, Sequence[Facts]]) -> str:
    """The part of docs/gpu-report.md about these kernels."""
    lines = [
        "## CUDA C++ kernels",
        "",
        f"Compiled by nvcc {release()}. Per architecture: registers of a thread, tensor-core instructions in the code.",
        "Shared memory is a block's, in KiB, static and dynamic.",
        "",
        "| kernel | shared | " + " | ".join(f"sm_{arch}" for arch in found) + " |",
        "| --- " * (2 + len(found)) + "|",
    ]
    for same in zip(*found.values(), strict=True):
        (name,) = {kernel.name for kernel in same}
        (shared,) = {kernel.shared for kernel in same}
        kind = name.partition("<")[0]
        dynamic = 0
        if kind == "conv2d_kernel":
            n = _constants("conv2d.cu")
            dynamic = n["STAGES"] * (n["BM"] + n["BN"]) * n["CHUNKS"] * n["CHUNK"]
        if kind == "linear_fused_kernel":
            dynamic = _fused_bytes(int(name.rstrip(">").rpartition(" ")[2]))
        cells = [f"{kernel.registers}" + _products(kernel) for kernel in same]
        lines.append(f"| `{name}` | {(shared + dynamic) / 1024:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _products(kernel: Facts) -> str:
    return "".join(f", {n} {name}" for name in ("HMMA", "HGMMA") if (n := kernel.count(name)))


def _fused_bytes(columns: int) -> int:
    """Shared memory of linear_fused.cu's blocks without their barriers: tiles of x, the weight and y, and gates."""
    n = _constants("linear_fused.cu")
    samples = (n["TILE_M"] - 2) // _constants("include/kernels.h")["FUSED_ROWS"] + 2
    step = _constants("include/hopper.cuh")["ROW"]
    return (
        n[f"STAGES_{columns}"] * (n["TILE_M"] + columns) * step * 2
        + n["TILE_M"] * columns * 2
        + 2 * samples * columns * 8
    )


@functools.cache
def _constants(name: str) -> dict[str, int]:
    """The numbers that a kernel's file declares."""
    declared = re.findall(r"^constexpr int (.+);", (ROOT / "csrc/cuda" / name).read_text(), re.MULTILINE)
    return {key: int(value) for key, value in re.findall(r"(\w+) = (\d+)(?:,|$)", "\n".join(declared), re.MULTILINE)}


def touched() -> str:
    """The PTX of touch.cu, without what depends on the compiler's build."""
    _, path = nvcc(TOUCH, "-ptx", "-arch=compute_80")
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("//")]
    return f"// nvcc {release()}\n" + re.sub(r"_GLOBAL__N__[0-9a-f]+_", "_GLOBAL__N__", "\n".join(lines)) + "\n"


if __name__ == "__main__":
    GOLDEN.write_text(touched())
