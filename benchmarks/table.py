"""The table of ratios to plain: one line for each rival on each case."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import torch

from benchmarks.measure import Result
from memmod.ops import dispatch


def machine() -> str:
    """One line: processor, threads, torch, what runs memmod's ops."""
    backends = ", ".join(name for name, reason in dispatch.availability().items() if reason is None)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    return (
        f"{platform.machine()} {device}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"memmod backends: {backends} (forced: {dispatch.get_backend() or 'none'})"
    )


def render(results: Sequence[Result]) -> list[str]:
    """The table's lines: ratio to plain (median, quartiles), time per call, peak extra and saved memory."""
    header = ("case", "phase", "rival", "layout", "x plain", "quartiles", "µs/call", "extra MiB", "saved MiB", "note")
    rows = [header]
    for result in results:
        if result.note:
            rows.append((result.case, result.phase, result.rival, "", "-", "", "", "", "", f"left out: {result.note}"))
            continue
        low, high = result.quartiles
        rows.append(
            (
                result.case,
                result.phase,
                result.rival,
                result.layout,
                f"{result.ratio:.2f}",
                f"{low:.2f}-{high:.2f}",
                f"{result.microseconds:.0f}",
                f"{result.extra_bytes / 2**20:.2f}",
                "" if result.saved_bytes is None else f"{result.saved_bytes / 2**20:.2f}",
                "",
            )
        )
    return aligned(rows)


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of columns; the first row is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
