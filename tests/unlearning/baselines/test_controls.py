"""The trivial rivals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from memmod.errors import ModelError
from memmod.unlearning.baselines import get_method, unlearn_with
from memmod.unlearning.baselines.controls import LogitMask, head_of, largest_lead
from tests.unlearning.baselines.digits import digits_task
from tests.unlearning.baselines.worked import linear, vectors, worked_task


class Structured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3)

    def forward(self, x):
        return {"logits": self.fc(x), "features": x}


def task():
    # logits (x, 0, 1 - x): class 0 leads by 2·x - 1 or x, whichever is less
    network = linear([[1.0], [0.0], [-1.0]], [0.0, 0.0, 1.0])
    return worked_task(network, vectors([[0.0], [0.25]], [2, 2]), vectors([[2.0], [4.0]], [0, 0]), 3)


def test_nothing_changes_nothing():
    outcome = unlearn_with(get_method("nothing"), digits_task())
    before = digits_task().network.state_dict()
    assert all(torch.equal(before[name], value) for name, value in outcome.network.state_dict().items())
    assert outcome.bytes == 0


def test_masked_logits_are_minus_infinity_and_the_others_as_before():
    original = task()
    outcome = unlearn_with(get_method("logit-mask"), original)
    x = original.forget.batch(torch.arange(2))
    found, before = outcome.network(x), original.network(x)
    assert found[:, 0].tolist() == [-math.inf, -math.inf]
    assert torch.equal(found[:, 1:], before[:, 1:])
    assert outcome.bytes == 8


def test_a_mask_finds_the_logits_in_a_structure():
    network, x = Structured(), torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    found = LogitMask(network, (1, 2), "logits")(x)
    assert torch.isinf(found["logits"]).tolist() == [[False, True, True]] * 4
    assert torch.equal(found["features"], x)


def test_the_largest_lead_over_the_classes_that_stay():
    assert torch.allclose(largest_lead(task()), torch.tensor([4.0, 0.0, 0.0]))


def test_a_shifted_class_wins_on_no_training_image_and_no_other_logit_changes():
    original = task()
    network = unlearn_with(get_method("bias-shift"), original).network
    for split in (original.retain, original.forget):
        x = split.batch(torch.arange(2))
        assert (network(x).argmax(1) != 0).all()
        assert torch.equal(network(x)[:, 1:], original.network(x)[:, 1:])
    # no further than it takes
    bias = network[1].bias[0].item()
    assert -4.1 < bias < -4.0


def test_the_head_is_the_named_classifier_or_the_last_layer_of_so_many_outputs():
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 4))
    assert head_of(network, 3) is network[1]
    network.get_classifier = lambda: network[0]
    assert head_of(network, 3) is network[0]
    with pytest.raises(ModelError, match="Sequential has no last layer with 7 outputs"):
        head_of(network, 7)
    with pytest.raises(ModelError, match="no last layer with a bias and 3 outputs"):
        head_of(linear([[1.0]] * 3), 3)
