"""The table of ratios to plain: one line for each rival on each case."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import torch

from benchmarks import roofline
from benchmarks.measure import Result
from memmod.ops import dispatch


def machine(results: Sequence[Result] = ()) -> list[str]:
    """Lines: processor, threads, torch, what runs memmod's ops; then what the results' floors are counted from."""
    backends = ", ".join(name for name, reason in dispatch.availability().items() if reason is None)
    gpu = f" and {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    line = (
        f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}{gpu}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, memmod backends: {backends} (forced: {dispatch.get_backend() or 'none'})"
    )
    roofs = dict.fromkeys(result.roof for result in results if result.roof is not None)
    return [line, *map(roofline.describe, roofs)]


def render(results: Sequence[Result]) -> list[str]:
    """The table's lines: ratio to plain (median, quartiles), time per call, peak extra and saved memory.

    With results of a GPU also the host's time per call, what a call reaches, and how much of the floor's speed that is.
    """
    on_gpu = any(result.device == "cuda" for result in results)
    reached = ("host µs", "TF/s", "GB/s", "of floor") if on_gpu else ()
    header = ("case", "phase", "rival", "layout", "x plain", "quartiles", "µs/call", *reached)
    rows = [(*header, "extra MiB", "saved MiB", "note")]
    for result in results:
        if result.note:
            empty = ("",) * (4 + len(reached))
            rows.append((result.case, result.phase, result.rival, "", "-", *empty, f"left out: {result.note}"))
            continue
        low, high = result.quartiles
        host = "" if result.host_seconds is None else f"{result.host_seconds * 1e6:.0f}"
        achieved = (host, *roofline.columns(result.work, result.roof, result.microseconds / 1e6)) if on_gpu else ()
        rows.append(
            (
                result.case,
                result.phase,
                result.rival,
                result.layout,
                f"{result.ratio:.2f}",
                f"{low:.2f}-{high:.2f}",
                f"{result.microseconds:.0f}" if result.device == "cpu" else f"{result.microseconds:.1f}",
                *achieved,
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
