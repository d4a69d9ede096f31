"""The serving benchmark: every way gives each request its own class, a wrong one is caught, memory is counted."""

from __future__ import annotations

import pytest
import torch

from benchmarks.measure import compare
from benchmarks.serving import (
    BAKED,
    BY_CLASS,
    HEADER,
    MIXED,
    WAYS,
    ServingCase,
    ServingComparison,
    make_requests,
    megabytes,
    row,
)

CASE = ServingCase("tiny", "resnet", 8, 10, batch=16, channels=1)


def once(one_round, rounds: int) -> None:
    for _ in range(rounds):
        one_round()


def test_ways_agree_and_are_a_line_of_the_table() -> None:
    comparison = ServingComparison(make_requests(CASE))
    assert comparison.layouts == ("NCHW", "NHWC") and 1 < len(comparison.requests.baked) <= 10
    comparison.choose_layout()
    results = compare(comparison, WAYS, 2, once)
    assert [(r.rival, r.note, len(r.seconds)) for r in results] == [
        ("plain", "", 6), (MIXED, "", 2), (BY_CLASS, "", 2), (BAKED, "", 2)
    ]  # fmt: skip
    line = row(comparison.requests, results)
    assert line.startswith(f"| tiny, 8×8, 10 classes | {len(comparison.requests.baked)} | ")
    assert line.count("|") == HEADER.splitlines()[0].count("|")


@pytest.mark.parametrize("way", [MIXED, BY_CLASS])
def test_a_request_that_gets_another_class_is_caught(way: str) -> None:
    comparison = ServingComparison(make_requests(CASE))
    runner = comparison.runner(way, "")
    comparison.check(way, runner)
    assert comparison.allowed < 1e-4
    # Of the requests' own models: a copy of the model with the rows of two classes exchanged.
    first, second = list(comparison.requests.baked)[:2]
    with torch.no_grad():
        for memory in comparison.requests.wf.memory_parameters():
            memory[[first, second]] = memory[[second, first]]
    with pytest.raises(AssertionError, match=f"{way} is wrong on tiny"):
        comparison.check(way, runner)


def test_memory_is_that_of_every_class() -> None:
    requests = make_requests(CASE)
    size = megabytes(requests)
    weights = sum(p.nbytes for name, p in requests.wf.named_parameters() if not name.endswith("memory"))
    gated = sum(p.nbytes for name, p in requests.wf.named_parameters() if name.endswith("weight") and "fc" not in name)
    memories = sum(memory.nbytes for memory in requests.wf.memory_parameters())
    assert size[MIXED] == pytest.approx((weights + gated + memories) / 1e6, rel=1e-2)
    assert size[BAKED] == pytest.approx(10 * size["plain"], rel=0.05)
