"""The row that a few images make, by hand."""

from __future__ import annotations

import torch
from torch import tensor

from memmod.evaluation.attacks import prototype


def test_a_row_mixed_with_a_prototype():
    shots = tensor([[1.0, 2.0], [3.0, 4.0]])
    row, centre = tensor([1.0, 0.0]), tensor([2.0, 1.0])
    torch.testing.assert_close(prototype.mixed_row(row, shots, centre, 5.0, 0.5), tensor([0.5, 2.5]))
    torch.testing.assert_close(prototype.mixed_row(row, shots, centre, 5.0, 1.0), tensor([0.0, 5.0]))
    torch.testing.assert_close(prototype.mixed_row(row, shots, centre, 5.0, 0.2), tensor([0.8, 1.0]))


def test_the_bias_moves_no_more_images_than_are_allowed():
    scores, others = tensor([1.0, 0.0, 0.0, 2.0]), tensor([2.0, 2.0, 3.0, 6.0])
    for harm, moved in ((0.0, 0), (0.25, 1), (0.5, 2), (0.75, 3)):
        bias = prototype.harmless_bias(scores, others, harm)
        assert int((scores + bias > others).sum()) == moved
        assert int((scores + bias + 1e-3 > others).sum()) > moved
    assert prototype.HARM == 0.01
