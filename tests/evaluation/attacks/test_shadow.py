"""Shadow models: RMIA's score and the balanced accuracy, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from memmod.evaluation.attacks import shadow


def test_the_score_of_one_image_against_two():
    own, out = tensor([0.5]), tensor([[0.1], [0.3]])
    # Pr(x) = (1.3 · 0.2 + 0.7) / 2 = 0.48 for all three: ratios 0.5 / 0.48, 0.24 / 0.48 and 0.6 / 0.48.
    near, far = tensor([0.24, 0.6]), tensor([[0.2, 0.2], [0.2, 0.2]])
    assert shadow.relative_scores(own, out, near, far).tolist() == [0.5]
    assert shadow.relative_scores(tensor([1.3]), out, near, far).tolist() == [1.0]
    assert shadow.relative_scores(tensor([0.2]), out, near, far).tolist() == [0.0]
    # LR = 1 is at the threshold.
    assert shadow.relative_scores(tensor([0.24]), out, near, far).tolist() == [0.5]


def test_shadows_that_know_an_image_lower_its_score():
    z, out_z = tensor([0.1, 0.2, 0.3]), torch.zeros(1, 3)
    scores = shadow.relative_scores(tensor([0.25, 0.25]), tensor([[0.0, 1.0]]), z, out_z)
    # Ratios 0.25 / 0.35 and 0.25 / 1.0 against 0.1 / 0.35, 0.2 / 0.35, 0.3 / 0.35.
    assert scores.tolist() == pytest.approx([2 / 3, 0.0])


def test_a_masked_class_gives_no_score():
    nothing = torch.zeros(4)
    assert shadow.relative_scores(nothing, torch.zeros(2, 4), nothing, torch.zeros(2, 4)).unique().numel() == 1


def test_balanced_accuracy_of_two_kinds():
    labels = tensor([True, True, True, True, False])
    assert shadow.balanced(tensor([True, True, True, False, True]), labels) == 3 / 8
    assert shadow.balanced(labels, labels) == 1.0


def test_log_probabilities_of_the_retained_classes():
    z = tensor([[0.0, 5.0, 0.0, -100.0], [math.log(3.0), -torch.inf, 0.0, -100.0]])
    found = shadow.retained_log_probabilities(z, (1,))
    assert found.shape == (2, 3)
    assert found[0].tolist() == pytest.approx([-math.log(2), -math.log(2), -20.0])
    assert found[1].tolist() == pytest.approx([math.log(0.75), math.log(0.25), -20.0])
