"""Rounded weights, by hand."""

from __future__ import annotations

import torch
from torch import tensor

from memmod.evaluation.attacks import quantisation
from tests.unlearning.problem import trained_base


def test_a_vector_of_three_in_int4():
    found = quantisation.rounded(tensor([0.1, -0.4, 1.0]), 4, per_channel=False)
    torch.testing.assert_close(found, tensor([1 / 7, -3 / 7, 1.0]))
    found = quantisation.rounded(tensor([0.1, -0.4, 1.0]), 8, per_channel=False)
    torch.testing.assert_close(found, tensor([13 / 127, -51 / 127, 1.0]))


def test_rows_have_levels_of_their_own():
    weight = tensor([[0.12, -0.2], [1.0, 0.4], [0.0, 0.0]])
    found = quantisation.rounded(weight, 4, per_channel=True)
    torch.testing.assert_close(found, tensor([[0.8 / 7, -0.2], [1.0, 3 / 7], [0.0, 0.0]]))
    found = quantisation.rounded(weight, 4, per_channel=False)
    torch.testing.assert_close(found, tensor([[1 / 7, -1 / 7], [1.0, 3 / 7], [0.0, 0.0]]))


def test_weights_are_rounded_and_nothing_else():
    import copy

    network = quantisation.quantise(copy.deepcopy(trained_base()), 4, True)
    for (name, new), old in zip(network.state_dict().items(), trained_base().state_dict().values(), strict=True):
        if name in ("features.0.weight", "features.3.weight", "head.weight"):
            assert all(row.unique().numel() <= 15 for row in new) and not torch.equal(new, old)
        else:
            assert torch.equal(new, old), name
