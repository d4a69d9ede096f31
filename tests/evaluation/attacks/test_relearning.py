"""Relearning: which images a step is trained on, and what is told of a curve."""

from __future__ import annotations

import pytest
import torch

from memmod.errors import DataError
from memmod.evaluation.attacks import Case, Measure, relearning
from memmod.training import TrainConfig
from tests.unlearning.problem import split, trained_base


def case(images_per_class: int = 30, **changes) -> Case:
    train = split(images_per_class, 1)
    return Case((2,), 4, train, split(10, 2), TrainConfig(), trained_base(), (), **{"quick": True, **changes})


def test_a_curve_in_two_figures():
    found = [Measure(value, 0.1) for value in (0.0, 0.0, 0.5, 0.5, 1.0)]
    after, mean = relearning.summary(found, (0, 1, 2, 5, 10))
    assert after.value == 0.5
    # 0 + 0.25 + 1.5 + 3.75 over 10 steps
    assert mean.value == pytest.approx(0.55) and mean.resolution == 0.1


def test_images_of_a_step():
    given = case()
    labels = given.train.labels
    shots = relearning.batches_for(given, "10-shot")
    first, second = shots(0), shots(1)
    assert torch.equal(first[:10], second[:10]) and first[:10].unique().numel() == 10
    assert (labels[first[:10]] == 2).all() and not (labels[first[10:]] == 2).any()
    assert len(first) == 64 and not torch.equal(first, second)
    assert torch.equal(shots(0), first)
    retained = relearning.batches_for(given, "retained")(3)
    assert len(retained) == 64 and not (labels[retained] == 2).any()
    full = relearning.batches_for(given, "full")(3)
    assert len(full) == 64 and (labels[full] == 2).any() and not (labels[full] == 2).all()


def test_too_few_images():
    with pytest.raises(DataError, match="needs at least 10 training images of class 2, but there are 9"):
        relearning.batches_for(case(9), "10-shot")


def test_a_curve_is_measured_before_its_steps():
    given = case()
    weight = torch.nn.Parameter(torch.zeros(4))
    seen = []
    relearning.curve(
        given,
        [weight],
        0.1,
        lambda _step: torch.arange(5),
        lambda x: weight.expand(len(x), 4),
        lambda: (seen.append(weight.detach().clone()), Measure(0.0))[1],
    )
    assert len(seen) == len(relearning.QUICK_STEPS) and not seen[0].any()
    # Adam's first step is lr long.
    assert seen[1].abs().tolist() == pytest.approx([0.1] * 4, rel=1e-3)
    assert not torch.equal(seen[1], seen[2])


def test_a_masked_logit_does_not_end_the_training():
    weight = torch.nn.Parameter(torch.zeros(4))
    mask = torch.tensor([0.0, -torch.inf, 0.0, 0.0])
    relearning.curve(
        case(),
        [weight],
        0.1,
        lambda step: torch.arange(100).view(4, 25)[step % 4],
        lambda x: (weight + mask).expand(len(x), 4),
        lambda: Measure(0.0),
    )
    assert weight.isfinite().all() and weight[0] != 0
