"""The labels that forgotten images are given."""

from __future__ import annotations

import torch

from memmod.unlearning.baselines import unlearn_with
from memmod.unlearning.baselines.random_labels import METHOD, RandomLabelsConfig, wrong_labels
from tests.unlearning.baselines.worked import linear, vectors, weight_of, worked_task


def test_wrong_labels_are_all_the_classes_that_stay_alike():
    forgotten = torch.tensor([False, True, False, True, False])
    labels = wrong_labels(3000, forgotten, torch.Generator().manual_seed(0))
    counts = torch.bincount(labels, minlength=5)
    assert counts[[1, 3]].tolist() == [0, 0]
    assert (counts[[0, 2, 4]] - 1000).abs().max() < 100


def test_forgotten_images_descend_towards_the_other_class_and_retained_ones_towards_their_own():
    # with two classes the wrong label is the other one; each kind moves its own column of zero weights
    task = worked_task(linear([[0.0, 0.0], [0.0, 0.0]]), vectors([[0.0, 1.0]], [1]), vectors([[1.0, 0.0]], [0]), 2)
    config = RandomLabelsConfig(epochs=1, reference_epochs=None, lr=0.1, momentum=0.0, weight_decay=0.0)
    found = weight_of(unlearn_with(METHOD, task, config).network)
    assert torch.allclose(found, torch.tensor([[-0.05, -0.05], [0.05, 0.05]]))
