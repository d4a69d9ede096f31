"""The nearest class of an image, worked by hand in one dimension."""

from __future__ import annotations

import pytest

from memmod.errors import RunError
from memmod.unlearning.baselines.boundary_shrink import BoundaryShrinkConfig, nearest_labels
from tests.unlearning.baselines.worked import linear, vectors, worked_task


def task(**changes):
    # at .5 the logits are 3, 2 and 1; downhill from class 0 class 2 rises ten times as fast, and leads at .3
    network = linear([[1.0], [0.0], [-10.0]], [2.5, 2.0, 6.0])
    images = vectors([[0.5], [0.0], [1.0]], [0, 0, 0])
    return worked_task(network, vectors([[0.0]], [2]), images, 3, **changes)


def test_the_class_beyond_the_boundary_and_not_the_runner_up():
    assert nearest_labels(task(), 0.2)[0] == 2


def test_an_image_that_does_not_cross_gets_the_best_class_that_stays():
    assert nearest_labels(task(), 0.02)[0] == 1


def test_no_label_is_of_a_class_that_is_forgotten_too():
    assert nearest_labels(task(classes=(0, 2)), 0.2).tolist() == [1, 1, 1]


def test_a_bound_out_of_range():
    with pytest.raises(RunError, match="bound is 0.0; it must be above 0"):
        BoundaryShrinkConfig(bound=0.0)
