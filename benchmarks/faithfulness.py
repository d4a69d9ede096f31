"""How faithful maps of a class's logit are, on runs of `memmod unlearn`, as Markdown.

    python -m benchmarks.faithfulness RUN[=BASE] ... [--images 400] [--map NAME ...] [--json FILE]

Runs of one kind of network on one data set, of several seeds and bases: the tables hold the means of their figures, and
the lowest and highest. BASE is the base's folder, where it is not the one that the run names.
Maps by other methods are of the base alone: of a second run on a base, memmod's are all that differs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memmod.explain.faithfulness import FaithfulnessConfig
from memmod.explain.measure import measure_faithfulness
from memmod.explain.rivals import MAPS
from memmod.runs.restore import restore_unlearned


def measured(run: str, config: FaithfulnessConfig, maps: Sequence[str] = tuple(MAPS)) -> dict[str, Any]:
    """The figures of one run, RUN or RUN=BASE, on its test images."""
    folder, _, base = run.partition("=")
    found = restore_unlearned(folder, base or None)
    return measure_faithfulness(found.wf, found.load_data().test, {name: MAPS[name] for name in maps}, config).to_dict()


def markdown(runs: list[dict[str, Any]]) -> str:
    """Tables of several runs' figures, maps in the order of the first run's insertion."""
    numbers = {row["map"]: number for number, row in enumerate(runs[0]["rows"])}
    names = sorted(numbers, key=lambda name: -runs[0]["rows"][numbers[name]]["insertion"])
    lines = ["| map | insertion | deletion | map of another class |", "|---|--:|--:|--:|"]
    for name in names:
        rows = [run["rows"][numbers[name]] for run in runs]
        cells = [_mean([row[figure] for row in rows]) for figure in ("insertion", "deletion", "other_class")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| check of the gates' path | figure |", "|---|--:|"]
    for key, words in CHECKS.items():
        lines.append(f"| {words} | {_mean([run['checks'][key] for run in runs], 4 if 'sum' in key else 2)} |")
    return "\n".join(lines)


CHECKS = {
    "memories_rank": "rank correlation, permuted memories",
    "memories_ssim": "SSIM, permuted memories",
    "row_rank": "rank correlation, another class's row",
    "sum_median": "parts' sum against the drop, median miss",
    "sum_worst": "parts' sum against the drop, worst miss",
}


def _mean(values: list[float], digits: int = 3) -> str:
    mean = f"{sum(values) / len(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN[=BASE]")
    parser.add_argument("--images", type=int, default=FaithfulnessConfig.images)
    parser.add_argument("--map", action="append", choices=list(MAPS), help="this map alone; repeatable")
    parser.add_argument("--json", type=Path, help="also keep each run's figures here")
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for run in options.runs:
        found[run] = measured(run, FaithfulnessConfig(images=options.images), options.map or tuple(MAPS))
        if options.json is not None:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(markdown(list(found.values())))


if __name__ == "__main__":
    main()
