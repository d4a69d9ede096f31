"""Selective Synaptic Dampening of weights worked by hand."""

from __future__ import annotations

import pytest
import torch

from memmod.errors import RunError
from memmod.unlearning.baselines import unlearn_with
from memmod.unlearning.baselines.ssd import METHOD, SSDConfig, dampening
from tests.unlearning.baselines.worked import linear, vectors, weight_of, worked_task


def test_only_weights_that_matter_more_to_the_forgotten_images_are_dampened():
    everything, forget = torch.ones(4), torch.tensor([20.0, 5.0, 9.0, 0.0])
    assert torch.allclose(dampening(everything, forget, 10, 1), torch.tensor([0.05, 1, 1, 1]))
    assert torch.allclose(dampening(everything, forget, 2, 3), torch.tensor([0.15, 0.6, 1 / 3, 1]))


def test_nothing_is_made_larger_and_nothing_becomes_nan():
    everything, forget = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([5.0, 0.0, 1.0])
    assert dampening(everything, forget, 2, 10).tolist() == [1.0, 1.0, 0.0]


def test_importances_of_two_images():
    # equal weights: the softmax is (.5, .5); squared gradients .25 of the forgotten and 1 of the retained image
    task = worked_task(linear([[1.0], [1.0]]), vectors([[2.0]], [1]), vectors([[1.0]], [0]), 2)
    found = weight_of(unlearn_with(METHOD, task, SSDConfig(alpha=0.2, lam=0.1)).network)
    assert torch.allclose(found, torch.full((2, 1), 0.1 * 0.625 / 0.25))
    untouched = weight_of(unlearn_with(METHOD, task, SSDConfig(alpha=0.5, lam=0.1)).network)
    assert untouched.tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("name", ["alpha", "lam", "images"])
def test_settings_out_of_range(name):
    with pytest.raises(RunError, match=f"{name} is 0; it must be above 0"):
        SSDConfig(**{name: 0})
