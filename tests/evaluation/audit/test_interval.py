"""Where one more oracle's figure would lie, by hand, and what is said of one that lies elsewhere."""

import math

import pytest
import torch

from memmod.errors import RunError
from memmod.evaluation.audit.interval import COVERAGE, OracleInterval, judge


def test_interval_of_two_by_hand():
    # s² = ½, t(.975, 1) = 12.706: half width 12.706 · √(½ · 3/2)
    interval = OracleInterval((1.0, 2.0))
    assert interval.mean == 1.5
    assert interval.half_width == pytest.approx(12.7062 * math.sqrt(0.75), rel=1e-5)


def test_interval_of_three_by_hand():
    # s = 1, t(.975, 2) = 4.3027
    interval = OracleInterval((1.0, 2.0, 3.0))
    assert interval.bounds == pytest.approx((2 - 4.3027 * math.sqrt(4 / 3), 2 + 4.3027 * math.sqrt(4 / 3)), rel=1e-4)


def test_one_more_oracle_lies_inside_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2000, 4, generator=generator, dtype=torch.float64).tolist()
    inside = sum(judge(new, OracleInterval(tuple(old)), "more").word == "within" for *old, new in draws)
    assert inside / len(draws) == pytest.approx(COVERAGE, abs=0.015)


def test_oracles_that_agree_leave_what_the_images_can_show():
    interval = OracleInterval((0.0, 0.0, 0.0), resolution=0.01)
    assert interval.bounds == (-0.01, 0.01)
    assert judge(0.01, interval, "more").word == "within"
    assert judge(0.02, interval, "more").word == "worse"


@pytest.mark.parametrize(
    ("value", "knows", "word", "distance"),
    [
        (0.5, "more", "within", 0.0),
        (0.7, "more", "worse", 0.1),
        (0.7, "less", "better", 0.1),
        (0.2, "more", "better", 0.2),
        (0.2, "less", "worse", 0.2),
        (0.2, "either", "worse", 0.2),
        (0.7, "either", "worse", 0.1),
        (0.5, "either", "within", 0.0),
        (0.9, "neither", "not judged", 0.0),
        (math.nan, "more", "not judged", 0.0),
    ],
)
def test_verdicts(value, knows, word, distance):
    found = judge(value, OracleInterval((0.5, 0.5), resolution=0.1), knows)
    assert found.word == word
    assert found.distance == pytest.approx(distance)


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(RunError, match="1 oracle gives no interval"):
        OracleInterval((0.5,))
    with pytest.raises(RunError, match="'up'"):
        judge(0.5, OracleInterval((0.5, 0.5)), "up")


def test_verdicts_by_side():
    interval = OracleInterval((0.5, 0.5), resolution=0.1)
    assert [judge(value, interval, "more").word for value in (0.3, 0.5, 0.7)] == ["better", "within", "worse"]
    assert [judge(value, interval, "less").word for value in (0.3, 0.5, 0.7)] == ["worse", "within", "better"]
