"""The projection in two dimensions."""

from __future__ import annotations

import pytest
import torch

from memmod.errors import RunError
from memmod.unlearning.baselines import Diverged, unlearn_with
from memmod.unlearning.baselines.svd_projection import METHOD, SVDProjectionConfig, space
from tests.unlearning.baselines.worked import linear, vectors, weight_of, worked_task


def projected(retain, forget, **changes):
    task = worked_task(linear([[1.0, 2.0], [3.0, 4.0]]), vectors(retain, [1] * len(retain)), vectors(forget, [0]), 2)
    return weight_of(unlearn_with(METHOD, task, SVDProjectionConfig(**changes)).network)


def test_importances_grow_with_alpha():
    # the share of one of two equal directions is 1/2: 3/2 of 1 + 2/2 is 3/4
    assert torch.allclose(space(2 * torch.eye(2), 3.0), 0.75 * torch.eye(2))
    assert torch.allclose(space(torch.diag(torch.tensor([3.0, 1.0])), 1.0), torch.diag(torch.tensor([0.75, 0.25])))


def test_a_direction_of_the_forgotten_class_alone_is_projected_out():
    assert torch.allclose(projected([[2.0, 0.0]], [[0.0, 3.0]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]]))


def test_a_direction_that_retained_images_have_too_is_kept():
    assert torch.allclose(projected([[2.0, 0.0]], [[5.0, 0.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


def test_of_a_shared_direction_the_importance_decides():
    # retained: shares .5 and .5, importances α/(α + 1) of 3: .75; so a quarter of e2 goes
    found = projected([[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0]], alpha_r=3.0)
    assert torch.allclose(found, torch.tensor([[1.0, 1.5], [3.0, 3.0]]))


def test_activations_that_are_not_finite():
    with pytest.raises(Diverged, match="svd-projection: what goes into 1 is not finite"):
        projected([[float("inf"), 0.0]], [[0.0, 1.0]])


@pytest.mark.parametrize("name", ["alpha_r", "alpha_f", "images"])
def test_settings_out_of_range(name):
    with pytest.raises(RunError, match=f"{name} is 0; it must be above 0"):
        SVDProjectionConfig(**{name: 0})
