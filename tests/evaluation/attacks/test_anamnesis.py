"""Relearn times by hand, and that an index near 0 tells a hidden class from one that was never seen."""

from __future__ import annotations

import pytest

from memmod.evaluation.attacks.anamnesis import relearn_steps


@pytest.mark.parametrize(
    ("accuracies", "target", "expected"),
    [
        ((0.9, 0.9, 0.9), 0.8, 0.0),  # there from the beginning
        ((0.0, 0.4, 0.8), 0.8, 5.0),
        ((0.0, 0.4, 0.8), 0.1, 0.5),  # a quarter of the way to step 2
        ((0.0, 0.9, 0.1), 0.8, 16 / 9),  # the first time counts
        ((0.0, 0.1, 0.2), 0.8, 5.0),  # never: all the steps there are
    ],
)
def test_relearn_steps_by_hand(accuracies, target, expected):
    assert relearn_steps(accuracies, (0, 2, 5), target) == pytest.approx(expected)


def test_relearn_steps_half_way():
    assert relearn_steps((0.0, 0.4, 0.8), (0, 2, 5), 0.6) == pytest.approx(3.5)
