"""What the table comes down to: geometric means of groups, networks one by one, small layers by overhead."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from benchmarks.measure import Result
from benchmarks.table import aligned

SMALL_MICROSECONDS = {"cpu": 1e3, "cuda": 50.0}
# Below SMALL_MICROSECONDS a call's overhead counts, not its arithmetic: such cases are kept out of the mean.
SPLIT_BY_SIZE = ("linear T=1", "linear small")


def by_group(results: Iterable[Result]) -> list[str]:
    """Geometric means over the cases of each group, phase and rival.

    The columns on memmod are means of the ratios on the cases that the rival and memmod share; memory is the peak of
    a call.
    """
    cases = _by_case(results)
    groups: dict[tuple[str, str, str], list[tuple[Result, dict[str, Result]]]] = {}
    for rivals in cases.values():
        for name, result in rivals.items():
            if name != "plain":
                key = (_group(result, rivals["plain"]), result.phase, name)
                groups.setdefault(key, []).append((result, rivals))
    header = ("x plain", "x plain's memory", "memmod is x faster", "memory x memmod's")
    rows = [("group", "phase", "rival", "cases", *header)]
    for key, members in groups.items():
        against = [(r, rivals["memmod"]) for r, rivals in members if "memmod" in rivals and r.rival != "memmod"]
        rows.append(
            (
                *key,
                str(len(members)),
                _mean(r.ratio for r, _ in members),
                _mean(_of(r.extra_bytes, rivals["plain"].extra_bytes) for r, rivals in members),
                _mean(r.ratio / own.ratio for r, own in against),
                _mean(_of(r.extra_bytes, own.extra_bytes) for r, own in against),
            )
        )
    return aligned(rows)


def networks(results: Iterable[Result]) -> list[str]:
    """Each network's rivals: time, peak and saved memory as multiples of the plain network's; [] without networks."""
    rows = [("network", "phase", "rival", "x plain", "x plain's memory", "x plain's saved", "memmod is x faster")]
    for (case, phase), rivals in _by_case(results).items():
        plain, own = rivals["plain"], rivals.get("memmod")
        if not plain.group.startswith(("step ", "serving ")):
            continue
        for name, result in rivals.items():
            if name == "plain":
                continue
            saved = [] if result.saved_bytes is None else [_of(result.saved_bytes, plain.saved_bytes)]
            faster = [result.ratio / own.ratio] if own and name != "memmod" else []
            memory = _of(result.extra_bytes, plain.extra_bytes)
            rows.append((case, phase, name, *map(_mean, ([result.ratio], [memory], saved, faster))))
    return aligned(rows) if len(rows) > 1 else []


def small_layers(results: Iterable[Result]) -> list[str]:
    """Overhead per call over plain, in µs, where plain takes less than `SMALL_MICROSECONDS`; [] without such a case."""
    rows = [("case", "phase", "plain µs", "memmod µs", "overhead µs", "eager µs", "overhead µs")]
    for (case, phase), rivals in _by_case(results).items():
        if not _is_small(rivals["plain"]):
            continue
        cells = []
        for name in ("memmod", "eager"):
            found = rivals.get(name)
            cells += [f"{found.microseconds:.0f}", f"{found.overhead:+.0f}"] if found else ["-", "-"]
        rows.append((case, phase, f"{rivals['plain'].microseconds:.0f}", *cells))
    return aligned(rows) if len(rows) > 1 else []


def _by_case(results: Iterable[Result]) -> dict[tuple[str, str], dict[str, Result]]:
    """The measured results by (case, phase) and rival; cases without other rivals than plain have no times."""
    cases: dict[tuple[str, str], dict[str, Result]] = {}
    for result in results:
        if not result.note:
            cases.setdefault((result.case, result.phase), {})[result.rival] = result
    return {key: rivals for key, rivals in cases.items() if len(rivals) > 1}


def _group(result: Result, plain: Result) -> str:
    if _is_small(plain):
        return result.group.replace(*SPLIT_BY_SIZE)
    return result.group


def _is_small(plain: Result) -> bool:
    return plain.microseconds < SMALL_MICROSECONDS[plain.device]


def _of(value: float, base: float) -> float:
    return max(value, 1) / max(base, 1)


def _mean(values: Iterable[float]) -> str:
    values: Sequence[float] = list(values)
    return f"{math.exp(sum(map(math.log, values)) / len(values)):.2f}" if values else "-"
