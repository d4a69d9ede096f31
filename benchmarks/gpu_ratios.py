"""`python -m benchmarks.gpu_ratios --out FOLDER`: the benchmarks on CUDA without pytest-benchmark, telling ones first.

After each case FOLDER/ratios.jsonl has a line more for each rival, and FOLDER/ratios.txt the table of all so far.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from benchmarks import table
from benchmarks.baselines import make_layer
from benchmarks.cases import CONV, DTYPES, LINEAR, NETWORKS, SERVED, Case, NetworkCase
from benchmarks.layers import LayerComparison
from benchmarks.measure import Comparison, Result, compare

ROUNDS = 5
MOST_SECONDS = 5.0


def in_order() -> Iterator[tuple[Case | NetworkCase, str]]:
    """Every case on a GPU with its phase: of each group a large layer in each dtype, the networks, all others."""
    layers = [case for case in (*LINEAR, *CONV) if case.devices == ("cuda",)]
    telling = {(case.group, case.name) for case in layers if case.quick}
    first = sorted((c for c in layers if (c.group, c.name) in telling), key=lambda c: list(DTYPES).index(c.dtype))
    rest = [case for case in (*LINEAR, *CONV) if "cuda" in case.devices and case not in first]
    for phase in ("forward+backward", "forward"):
        yield from ((case, phase) for case in first)
    yield from ((case, "forward+backward") for case in NETWORKS)
    yield from ((case, "forward") for case in SERVED)
    for phase in ("forward+backward", "forward"):
        yield from ((case, phase) for case in rest)


def comparison(case: Case | NetworkCase, phase: str, device: str) -> Comparison:
    if isinstance(case, Case):
        return LayerComparison(make_layer(case, device), phase)
    # Networks need more of memmod's requirements than layers do.
    from benchmarks.networks import make_network
    from benchmarks.steps import NetworkComparison

    return NetworkComparison(make_network(case, device, whole_batch=phase == "forward"), phase)


def line(result: Result) -> str:
    """A result as one line of JSON."""
    found = {name: getattr(result, name) for name in ("case", "group", "phase", "rival", "layout", "note")}
    if not result.note:
        found |= {"ratio": result.ratio, "quartiles": result.quartiles, "microseconds": result.microseconds}
        found |= {"extra_bytes": result.extra_bytes, "of_floor": result.of_floor}
    return json.dumps(found)


def measure_all(
    cases: Iterator[tuple[Case | NetworkCase, str]], device: str, out: Path, rivals: Sequence[str] | None = None
) -> int:
    """Measures the cases with these rivals or all, and writes after each; how many were wrong or could not run."""
    results: list[Result] = []
    failed = 0

    def rounds(one: Callable[[], None], count: int) -> None:
        for _ in range(count):
            one()

    with open(out / "ratios.jsonl", "w") as lines:
        for case, phase in cases:
            try:
                one = comparison(case, phase, device)
                found = compare(one, rivals or one.rivals, ROUNDS, rounds, MOST_SECONDS)
            except Exception as error:
                # One that is wrong, or larger than the card, must not cost the others.
                failed += 1
                reason = (str(error).splitlines() or [""])[0]
                found = [Result(str(case), case.group, phase, "all", note=f"{type(error).__name__}: {reason}")]
            torch.compiler.reset()
            results += found
            print(*map(line, found), sep="\n", file=lines, flush=True)
            print(f"{case} {phase}: {summary(found)}", flush=True)
            beside = out / "ratios.tmp"
            beside.write_text("\n".join([*table.machine(results), *table.render(results)]) + "\n")
            beside.replace(out / "ratios.txt")
    return failed


def summary(results: Sequence[Result]) -> str:
    return ", ".join(f"{r.rival} {f'left out: {r.note}' if r.note else f'{r.ratio:.2f}'}" for r in results)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_ratios", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args(arguments).out
    if not torch.cuda.is_available():
        print("benchmarks.gpu_ratios measures on an NVIDIA GPU, and torch sees none", file=sys.stderr)
        return 1
    out.mkdir(parents=True, exist_ok=True)
    return min(1, measure_all(in_order(), "cuda", out))


if __name__ == "__main__":
    sys.exit(main())
