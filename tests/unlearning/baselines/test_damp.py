"""DAMP's directions, strengths and edits, worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from memmod.errors import RunError
from memmod.unlearning.baselines import unlearn_with
from memmod.unlearning.baselines.damp import METHOD, DampConfig, forget_directions, prototypes, remove, separability
from tests.unlearning.baselines.worked import linear, vectors, weight_of, worked_task

RETAINED = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]], dtype=torch.float64)


def test_a_direction_is_what_retained_prototypes_do_not_span():
    found = forget_directions(torch.tensor([[5.0, -3.0, 2.0]], dtype=torch.float64), RETAINED)
    assert torch.allclose(found.abs(), torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64))


def test_prototypes_within_the_retained_span_give_none():
    assert forget_directions(torch.tensor([[2.0, 7.0, 0.0]], dtype=torch.float64), RETAINED).shape == (0, 3)


def test_two_classes_give_an_orthonormal_plane():
    forgotten = torch.tensor([[0.0, 2.0, 1.0], [0.0, 2.0, 5.0]], dtype=torch.float64)
    found = forget_directions(forgotten, RETAINED[:1])
    assert torch.allclose(found @ found.T, torch.eye(2, dtype=torch.float64))
    assert found[:, 0].abs().max() < 1e-12


@pytest.mark.parametrize("kind", [nn.Linear(3, 2), nn.Conv2d(3, 2, 2)])
def test_the_direction_is_removed_to_the_strength_from_every_position_of_the_kernel(kind):
    before = kind.weight.detach().clone()
    remove(kind, torch.tensor([[0.0, 0.6, 0.8]], dtype=torch.float64), 0.5)
    along = 0.6 * before[:, 1] + 0.8 * before[:, 2]
    expected = before.clone()
    expected[:, 1] -= 0.5 * 0.6 * along
    expected[:, 2] -= 0.5 * 0.8 * along
    assert torch.allclose(kind.weight, expected, atol=1e-6)


def test_separability_is_one_where_prototypes_tell_and_none_where_they_do_not():
    labels, forgotten = torch.tensor([0, 0, 1, 1]), torch.tensor([True, False])
    apart = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    assert separability(apart, labels, prototypes(apart, labels, 2), forgotten) == 1.0
    # the first forgotten and the last retained image lie on the wrong side
    crossed = torch.tensor([[9.0], [0.0], [10.0], [1.0]])
    assert separability(crossed, labels, prototypes(crossed, labels, 2), forgotten) == 0.0
    half = torch.tensor([[0.0], [0.0], [5.0], [0.5]])
    assert separability(half, labels, prototypes(half, labels, 2), forgotten) == 0.5


def test_retained_prototypes_pass_the_edited_layer_unchanged():
    retain = vectors([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]], [1, 2])
    task = worked_task(linear([[1.0, 2.0, 3.0]] * 3), retain, vectors([[2.0, 2.0, 4.0]], [0]), 3)
    found = weight_of(unlearn_with(METHOD, task).network)
    assert torch.allclose(found, torch.tensor([[1.0, 2.0, 0.0]] * 3), atol=1e-6)


def test_images_out_of_range():
    with pytest.raises(RunError, match="images is 0; it must be above 0"):
        DampConfig(images=0)
