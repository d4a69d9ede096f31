"""The summaries of a benchmark run, on made-up results."""

from __future__ import annotations

import math

import pytest

from benchmarks import summary
from benchmarks.measure import Result


def result(rival: str, ratios: list[float], plain: float = 2e-3, case: str = "a", group: str = "g fp32", **values):
    """A result whose ratio to plain is that of each round, plain taking `plain` seconds."""
    seconds = [ratio * plain for ratio in ratios]
    return Result(case, group, "forward", rival, ratios=ratios, seconds=seconds, **values)


def cells(lines: list[str]) -> list[list[str]]:
    """The cells of each row below the header; columns are two spaces apart."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[1:]]


def test_geometric_means_and_ratios_to_memmod() -> None:
    results = [
        result("plain", [1.0], case="a", extra_bytes=100),
        result("eager", [1.9, 2.0, 2.1], case="a", extra_bytes=200),
        result("memmod", [0.5, 0.5, 0.5], case="a", extra_bytes=50),
        result("plain", [1.0], case="b", extra_bytes=100),
        result("eager", [8.0], case="b", extra_bytes=800),
        result("memmod", [0.5], case="b", extra_bytes=100),
        Result("b", "g fp32", "forward", "vmap", note="too big"),
    ]
    assert cells(summary.by_group(results)) == [
        ["g fp32", "forward", "eager", "2", "4.00", "4.00", "8.00", f"{math.sqrt(4 * 8):.2f}"],
        ["g fp32", "forward", "memmod", "2", "0.50", f"{math.sqrt(0.5):.2f}", "-", "-"],
    ]


def test_only_cases_that_both_measured_are_compared() -> None:
    results = [
        result("plain", [1.0], case="a"),
        result("vmap", [10.0], case="a"),
        result("memmod", [1.0], case="a"),
        result("plain", [1.0], case="b"),
        result("memmod", [5.0], case="b"),
    ]
    vmap, memmod = cells(summary.by_group(results))
    assert vmap[3:5] == ["1", "10.00"] and vmap[6] == "10.00"
    assert memmod[3:5] == ["2", f"{math.sqrt(5):.2f}"]


def test_rows_are_parted_by_what_plain_takes() -> None:
    results = []
    for case, plain in (("short", 0.4e-3), ("long", 3e-3)):
        results += [
            result("plain", [1.0], plain, case, "linear T=1 fp32"),
            result("memmod", [2.0], plain, case, "linear T=1 fp32"),
        ]
    groups = [(row[0], row[3]) for row in cells(summary.by_group(results))]
    assert groups == [("linear small fp32", "1"), ("linear T=1 fp32", "1")]


def test_small_layers_are_told_in_microseconds() -> None:
    results = [
        result("plain", [1.0], 100e-6),
        result("memmod", [1.4, 1.5, 1.6], 100e-6),
        result("eager", [2.0], 100e-6),
        result("plain", [1.0], 2e-3, "big"),
        result("memmod", [1.5], 2e-3, "big"),
    ]
    assert cells(summary.small_layers(results)) == [["a", "forward", "100", "150", "+50", "200", "+100"]]
    assert summary.small_layers(results[3:]) == []
    assert cells(summary.small_layers(results[:2])) == [["a", "forward", "100", "150", "+50", "-", "-"]]


def test_overhead_is_of_the_same_round() -> None:
    noisy = Result("a", "g", "forward", "memmod", ratios=[1.1, 1.5, 1.2], seconds=[1100e-6, 150e-6, 240e-6])
    assert noisy.overhead == pytest.approx(50.0)


def test_networks_are_told_one_by_one() -> None:
    results = [
        result("plain", [1.0], group="step n fp32", extra_bytes=100, saved_bytes=1000),
        result("eager folded", [1.2], group="step n fp32", extra_bytes=150, saved_bytes=2000),
        result("memmod", [0.8], group="step n fp32", extra_bytes=102, saved_bytes=1100),
        result("plain", [1.0], case="s", group="serving n fp32", extra_bytes=100),
        result("memmod", [1.0], case="s", group="serving n fp32", extra_bytes=100),
    ]
    assert cells(summary.networks(results)) == [
        ["a", "forward", "eager folded", "1.20", "1.50", "2.00", "1.50"],
        ["a", "forward", "memmod", "0.80", "1.02", "1.10", "-"],
        ["s", "forward", "memmod", "1.00", "1.00", "-", "-"],
    ]
    assert summary.networks([result("plain", [1.0]), result("memmod", [1.0])]) == []


def test_plain_alone_says_nothing() -> None:
    alone = [Result("a", "g", "forward", "plain", ratios=[1.0])]
    assert len(summary.by_group(alone)) == 1 and summary.networks(alone) == summary.small_layers(alone) == []
