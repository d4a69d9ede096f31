"""Rows of measured maps: what a report reads, the same figures as by hand, and intervals that hold them."""

from __future__ import annotations

import json

import pytest
import torch

from memmod.data import TensorSplit, at_most
from memmod.explain.faithfulness import FaithfulnessConfig, curves
from memmod.explain.measure import Mean, measure_faithfulness
from memmod.explain.rivals import MAPS
from tests.explain.helpers import Small, settle, with_memories

CONFIG = FaithfulnessConfig(steps=4, images=10, checked=5, blur=3)
NAMES = ("gate path", "gate path and pixels", "brightness")


def split() -> TensorSplit:
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(30, 1, 16, 16, generator=generator)
    return TensorSplit(images, torch.arange(30) % 5, 1.0, (0.25,), (0.5,))


def test_rows_are_what_a_report_reads() -> None:
    torch.manual_seed(0)
    data = split()
    wf = with_memories(settle(Small()), data.batch(torch.arange(2)))
    found = measure_faithfulness(wf, data, {name: MAPS[name] for name in NAMES}, CONFIG).to_dict()
    assert json.loads(json.dumps(found)) == found
    assert (found["steps"], found["images"], [row["map"] for row in found["rows"]]) == (4, 10, list(NAMES))
    for row in found["rows"]:
        for figure in ("insertion", "deletion", "other_class"):
            low, high = row[f"{figure}_interval"]
            assert -1 <= low <= row[figure] <= high <= 1
    assert found["rows"][2]["other_class"] == pytest.approx(1)
    assert found["rows"][0]["other_class"] < 0.99
    assert found["checks"]["sum_median"] <= found["checks"]["sum_worst"] <= 0.01
    assert found["checks"]["memories_rank"] < 0.999 > found["checks"]["row_rank"]
    chosen = at_most(data.labels, 10, 0)
    x, classes = data.batch(chosen), data.labels[chosen]
    areas = curves(wf, x, classes, x.mean(1), -0.5, CONFIG).areas()
    by_hand = [area.double().mean().item() for area in areas]
    assert [found["rows"][2]["insertion"], found["rows"][2]["deletion"]] == pytest.approx(by_hand, rel=1e-5)


def test_an_interval_narrows_with_more_images() -> None:
    few, many = (Mean.of(torch.randn(count, generator=torch.Generator().manual_seed(0))) for count in (20, 2000))
    widths = [mean.interval[1] - mean.interval[0] for mean in (few, many)]
    assert 6 < widths[0] / widths[1] < 16
    # Of 2,000 values of standard deviation 1: 2 · 1.96 / √2000.
    assert widths[1] == pytest.approx(0.0877, rel=0.15)
