"""The tables of several runs: means, and the lowest and highest."""

from __future__ import annotations

from benchmarks.faithfulness import CHECKS, markdown


def run(shift: float) -> dict:
    row = {"deletion": 0.25, "other_class": 0.0}
    return {
        "rows": [{"map": "low", "insertion": 0.5 + shift, **row}, {"map": "high", "insertion": 0.75 + shift, **row}],
        "checks": dict.fromkeys(CHECKS, 0.5 + shift),
    }


def test_maps_are_in_the_order_of_insertion_with_their_range() -> None:
    lines = markdown([run(0.0), run(0.25)]).splitlines()
    assert lines[2].startswith("| high | 0.875 (0.750 to 1.000) | 0.250 (0.250 to 0.250) | ")
    assert lines[3].startswith("| low | 0.625 (0.500 to 0.750) | ")
    assert lines[-1].endswith("worst miss | 0.6250 (0.5000 to 0.7500) |")
    assert markdown([run(0.0)]).splitlines()[2] == "| high | 0.750 | 0.250 | 0.000 |"
