"""Membership inference: its formulas by hand, and what it sees in networks that know the class or do not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from memmod.evaluation.attacks import membership


def test_auc_of_four_points():
    assert membership.auc(tensor([3.0, 1.0]), tensor([2.0, 0.0])) == 3 / 4
    assert membership.auc(tensor([1.0, 1.0]), tensor([1.0, 0.0])) == 3 / 4
    assert membership.auc(tensor([0.0]), tensor([1.0, 2.0])) == 0.0
    assert membership.auc(tensor([5.0, 5.0]), tensor([5.0])) == 0.5


def test_tpr_at_fpr():
    others = torch.arange(100.0)
    members = tensor([97.0, 97.5, 98.0, 98.5])
    # One of the hundred, 99, may be above the threshold, 98; then two, above 97.
    assert membership.tpr_at_fpr(members, others) == 1 / 4
    assert membership.tpr_at_fpr(members, others, fpr=0.02) == 3 / 4
    # Of 50 images none may be taken for a member.
    assert membership.tpr_at_fpr(tensor([48.5, 49.0, 49.5]), torch.arange(50.0)) == 1 / 3


def test_modified_entropy_of_three_classes():
    p = tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    expected = -0.5 * math.log(0.5) - 0.3 * math.log(0.7) - 0.2 * math.log(0.8)
    assert membership.modified_entropy(p, tensor([0])).item() == pytest.approx(expected, rel=1e-12)
    expected = -0.8 * math.log(0.2) - 0.5 * math.log(0.5) - 0.3 * math.log(0.7)
    assert membership.modified_entropy(p, tensor([2])).item() == pytest.approx(expected, rel=1e-12)
    certain = tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    found = membership.modified_entropy(certain, tensor([0, 0]))
    assert found[0] == 0 and found[1].isfinite() and found[1] > 50


def test_signals_are_larger_for_an_image_that_is_known():
    z = tensor([[4.0, 0.0, 0.0], [1.0, 0.5, 0.0]])
    for name, score in membership.signals(z, tensor([0, 0])).items():
        assert score[0] > score[1], name
    entropy = membership.signals(tensor([[0.0, 0.0, -torch.inf]]), tensor([0]))["entropy"]
    assert entropy.item() == pytest.approx(-math.log(2))
    masked = membership.signals(tensor([[0.0, 0.0, -torch.inf]]), tensor([2]))
    assert all(score.isfinite().all() for score in masked.values())
