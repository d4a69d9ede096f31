"""Probes on lines, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import tensor

from memmod.evaluation.attacks import probes


def column(*values: float) -> torch.Tensor:
    return tensor([float(value) for value in values]).unsqueeze(1)


def test_neighbours_on_a_line():
    train, labels = column(0, 1, 2, 3, 10, 11, 12), tensor([2, 0, 0, 0, 1, 1, 1])
    assert probes.nearest_neighbours(train, labels, column(0, 9, 7), k=3).tolist() == [0, 1, 1]
    assert probes.nearest_neighbours(train, labels, column(0, 9, 6), k=1).tolist() == [2, 1, 0]
    # Two against two: the lower class.
    assert probes.nearest_neighbours(train, labels, column(6.6), k=4).tolist() == [0]
    assert probes.NEIGHBOURS == 10


def test_the_nearest_mean_on_a_line():
    train, labels = column(0, 4, 5, 5), tensor([3, 3, 1, 1])
    # 4 and 5 are as near to 4.5; the means are 2 and 5.
    assert probes.nearest_mean(train, labels, column(3.4, 3.6)).tolist() == [3, 1]


def test_a_linear_probe_finds_a_direction():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(40)
    x = torch.randn(120, 5, generator=generator) + 4 * torch.eye(5)[labels]
    found = probes.linear(x[:60], labels[:60], x[60:])
    assert (found == labels[60:]).double().mean() > 0.9


def test_features_are_standardised_by_those_of_training():
    train, test = probes.standardised(tensor([[0.0, 7.0], [2.0, 7.0]]), tensor([[3.0, 8.0]]))
    assert train.tolist() == [[-1.0, 0.0], [1.0, 0.0]] and test.tolist() == [[2.0, 1.0]]


def test_balanced_accuracy_of_unequal_classes():
    right, labels = tensor([1, 1, 0, 1]), tensor([0, 0, 0, 2])
    assert probes.balanced_accuracy(right, labels) == pytest.approx((2 / 3 + 1) / 2)


def test_points_of_a_deep_network_are_thinned():
    points = tuple(f"blocks.{i}" for i in range(12)) + ("penultimate",)
    found = probes.thinned(points)
    assert len(found) == 6 and found[-1] == "penultimate" and found[0] == "blocks.0"
    assert [points.index(p) for p in found] == sorted({points.index(p) for p in found})
    assert probes.thinned(points[:6]) == points[:6]


def test_the_same_features_are_probed_once():
    x, y = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    found = {"stem": x, "blocks.0": y, "blocks.1": x[:, :2], "blocks.2": x + 1e-7, "penultimate": x}
    assert probes.without_repetition(found) == ("stem", "blocks.0", "blocks.1", "penultimate")
