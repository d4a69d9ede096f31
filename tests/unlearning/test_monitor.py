"""Which state is best, and what is warned of."""

from __future__ import annotations

import json

import msgspec
import pytest

from memmod.unlearning.monitor import Evaluation, find_warnings


def evaluation(*acc_forget: float, retain: float = 0.9, step: int = 10) -> Evaluation:
    return Evaluation(step, {"total": 1.5}, acc_forget, retain)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (evaluation(0.0, 0.1, retain=0.5), evaluation(0.2, 0.0, retain=0.9)),
        (evaluation(0.1, 0.0, retain=0.9), evaluation(0.0, 0.1, retain=0.8)),
        (evaluation(0.1, 0.1), None),
    ],
)
def test_worst_class_first_then_retain(better, worse):
    assert better.better_than(worse)
    assert worse is None or not worse.better_than(better)


def test_the_later_of_equals_is_kept():
    assert evaluation(0.1, step=20).better_than(evaluation(0.1, step=10))


def test_aggregates_and_json():
    e = evaluation(0.0, 0.3, 0.1)
    assert (e.worst_forget, e.worst_class, e.mean_forget) == (0.3, 1, pytest.approx(0.4 / 3))
    assert msgspec.convert(json.loads(json.dumps(e.to_dict())), Evaluation) == e


def test_over_unlearning_beyond_three_points():
    assert find_warnings(evaluation(0.0, 0.0, retain=0.871), 0.9, ("a", "b")) == {}
    found = find_warnings(evaluation(0.0, 0.0, retain=0.86), 0.9, ("a", "b"))
    assert list(found) == ["over-unlearning"]
    assert "86.0%, 4.0 points below the base's 90.0%" in found["over-unlearning"]


def test_lagging_classes_are_named_the_worst_first():
    assert find_warnings(evaluation(0.05, 0.0), 0.9, ("ant", "bee")) == {}
    found = find_warnings(evaluation(0.06, 0.0, 0.4), 0.9, ("ant", "bee", "cow"))
    assert list(found) == ["lagging"]
    assert "2 of 3 classes" in found["lagging"] and "('cow' 40.0%, 'ant' 6.0%)" in found["lagging"]
