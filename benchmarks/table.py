"""The table of ratios to the plain layer, and the geometric mean of each group."""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Iterable, Sequence

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
    """The table's lines: ratio to plain (median, quartiles), time per call, peak extra memory."""
    header = ("case", "phase", "rival", "layout", "x plain", "quartiles", "µs/call", "extra MiB", "note")
    rows = [header]
    for result in results:
        if result.note:
            rows.append((result.case, result.phase, result.rival, "", "-", "", "", "", f"left out: {result.note}"))
            continue
        low, high = result.quartiles if len(result.ratios) > 1 else (result.ratio, result.ratio)
        rows.append(
            (
                result.case,
                result.phase,
                result.rival,
                result.layout,
                f"{result.ratio:.2f}",
                f"{low:.2f}-{high:.2f}",
                f"{statistics.median(result.seconds) * 1e6:.0f}",
                f"{result.extra_bytes / 2**20:.2f}",
                "",
            )
        )
    return _aligned(rows)


def summarise(results: Iterable[Result]) -> list[str]:
    """Geometric means over the cases of each group, phase and rival; memory as the mean ratio to plain."""
    results = [r for r in results if not r.note]
    plain = {(r.case, r.phase): r.extra_bytes for r in results if r.rival == "plain"}
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        if result.rival != "plain":
            groups.setdefault((result.group, result.phase, result.rival), []).append(result)
    rows = [("group", "phase", "rival", "cases", "x plain (geometric mean)", "x plain's memory")]
    for key, members in groups.items():
        speed = _geometric_mean([r.ratio for r in members])
        memory = _geometric_mean([max(r.extra_bytes, 1) / max(plain[r.case, r.phase], 1) for r in members])
        rows.append((*key, str(len(members)), f"{speed:.2f}", f"{memory:.2f}"))
    return _aligned(rows)


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
