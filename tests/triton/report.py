"""docs/gpu-report.md: what the compiled kernels need of a GPU. `python -m tests.triton.report` writes it anew."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import triton

from tests.cuda import machine_code
from tests.triton.aot import TOOLS, Facts
from tests.triton.variants import ARCHITECTURES, GROUPS, Compilation, Group, facts

REPORT = Path(__file__).resolve().parents[2] / "docs/gpu-report.md"
HEAD = """# The kernels as machine code

Compiled and inspected, not timed: [performance.md](performance.md) has what a GPU measured.

Compiled by {versions}.
Written by `make gpu-report`; `make aot` compiles the same, checks it (no spills, no local memory, no global atomics,
tensor cores in every product, 16-byte accesses, shared memory within the limit), and fails if this file is out of date.

A product has a line for each of its tiles (rows x columns x inner, warps, stages); another kernel has one for all its
blocks, with the least and the most of each number. Registers are a thread's; shared memory is a block's, in KiB; blocks
are how many a multiprocessor can hold at once by registers, shared memory and threads, times a block's warps (of 64).
Types: fp32 is an fp32 product in three TF32 products, tf32 in one. Low samples have fewer rows than a tile.
"""
CUDA_HEAD = "## CUDA C++ kernels\n"
COLUMNS = ("kernel", "given", "type", "tile or blocks", "registers", "shared", "blocks x warps", "tensor cores")


def compilers() -> str:
    """What the code depends on: Triton and its assemblers, of which sm_100 has its own."""
    names = [f"triton {triton.__version__}"]
    for name in ("ptxas", "ptxas-blackwell"):
        text = subprocess.run([TOOLS / name, "--version"], capture_output=True, text=True, check=True).stdout
        names.append(f"{name} {re.search(r'V([0-9.]+)', text)[1]}")
    return ", ".join(names)


def versions() -> str:
    return f"{compilers()}, torch {torch.__version__.partition('+')[0]}"


def table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def span(values: Sequence[float], form: str = "{}") -> str:
    """The least and the most of some values."""
    least, most = form.format(min(values)), form.format(max(values))
    return least if least == most else f"{least} to {most}"


def lines(group: Group, compilations: Sequence[Compilation], found: Sequence[Facts]) -> list[str]:
    """A group's lines."""
    if any(compilation.expected.tensor_cores for compilation in compilations):
        parts = [(compilation.config, [one]) for compilation, one in zip(compilations, found, strict=True)]
    else:
        parts = [(f"{len(found)} of them" if len(found) > 1 else "one", found)]
    return [
        table_line(
            (
                group.form.kernel,
                group.form.name,
                group.kind,
                name,
                span([one.registers for one in some]),
                span([one.shared / 1024 for one in some], "{:.1f}"),
                f"{span([one.blocks(group.arch) for one in some])} x {span([one.warps for one in some])}",
                " ".join(sorted({one.tensor_cores for one in some})) or "none",
            )
        )
        for name, some in parts
    ]


def compiled_lines(number: int) -> list[str]:
    """Of a group by its number, as another process cannot be sent a group."""
    group = GROUPS[number]
    compilations = group.compilations()
    return lines(group, compilations, facts(compilations, group.arch))


def text(by_group: dict[Group, list[str]]) -> str:
    """The report."""
    parts = [HEAD.format(versions=versions())]
    for arch in ARCHITECTURES:
        rows = [line for group, found in by_group.items() if group.arch == arch for line in found]
        head = [table_line(COLUMNS), table_line(["---"] * len(COLUMNS))]
        parts.append("\n".join([f"## sm_{arch}", "", *head, *rows, ""]))
    return "\n".join(parts)


def sections(report: str) -> dict[int, list[str]]:
    """The lines of a report's tables, by architecture."""
    found = {}
    for part in report.partition(CUDA_HEAD)[0].split("\n## sm_")[1:]:
        title, *body = part.splitlines()
        found[int(title)] = [line for line in body if line.startswith("|")][2:]
    return found


def cuda_section(report: str) -> str:
    """The part about the CUDA C++ kernels, which tests/cuda/machine_code.py writes."""
    _, head, text = report.partition(CUDA_HEAD)
    return head + text


def committed() -> dict[int, list[str]]:
    return sections(REPORT.read_text())


def main() -> None:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        report = text(dict(zip(GROUPS, pool.map(compiled_lines, range(len(GROUPS))), strict=True)))
    # Without nvcc what it compiled elsewhere stays.
    cuda = machine_code.section(machine_code.every_kernel()) if machine_code.release() else None
    report += "\n" + (cuda or cuda_section(REPORT.read_text()))
    REPORT.parent.mkdir(exist_ok=True)
    beside = REPORT.with_suffix(".tmp")
    beside.write_text(report)
    beside.replace(REPORT)
    print(f"{REPORT.name}: {sum(map(len, sections(report).values()))} lines")


if __name__ == "__main__":
    main()
