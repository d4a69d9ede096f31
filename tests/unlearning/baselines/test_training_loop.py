"""Batches, steps, and the statistics that forgotten images leave alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from memmod.errors import RunError
from memmod.training import TrainConfig
from memmod.unlearning.baselines import Diverged
from memmod.unlearning.baselines.training_loop import (
    Batches,
    GradientConfig,
    Steps,
    spread,
    train_with_fixed_statistics,
)
from tests.unlearning.baselines.digits import digits_task
from tests.unlearning.baselines.worked import linear, vectors, worked_task


def task_of(images: int, batch_size: int, epochs: int = 1):
    split = vectors([[float(i)] for i in range(images)], [0] * images)
    training = TrainConfig(epochs=epochs, batch_size=batch_size)
    return worked_task(linear([[1.0], [0.0]]), split, split, 2, training=training)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, "lr is 0.0; it must be above 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"epochs": -1.0}, "epochs is -1.0"),
        ({"reference_epochs": 0}, "reference_epochs is 0"),
        ({"momentum": 1.5}, "momentum is 1.5; it must be between 0 and 1"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; it must be at least 0"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"optimiser": "lion"}, "optimiser is 'lion'; it must be one of 'sgd', 'adam', 'adamw'"),
    ],
)
def test_settings_out_of_range_are_named(changes, message):
    with pytest.raises(RunError, match=message):
        GradientConfig(**changes)


def test_passes_are_scaled_to_the_share_of_the_training_that_the_paper_took():
    task = task_of(100, 10, epochs=6)
    assert GradientConfig(epochs=2).steps(task, task.retain) == 20
    # 10 epochs beside 30 are a third of a training: 2 of 6 epochs
    assert GradientConfig(epochs=10, reference_epochs=30).steps(task, task.retain) == 20
    assert GradientConfig(epochs=1, reference_epochs=1000).steps(task, task.retain) == 1


def test_a_pass_shows_every_image_once_with_its_label():
    task = task_of(10, 4)
    batches = Batches(task, task.retain, torch.Generator().manual_seed(0), labels=torch.arange(10) + 50)
    passes = [[next(batches) for _ in range(3)] for _ in range(2)]
    orders = []
    for one in passes:
        x = torch.cat([x for x, _ in one]).flatten()
        labels = torch.cat([labels for _, labels in one])
        assert x.sort().values.tolist() == list(range(10))
        assert torch.equal(labels, x.long() + 50)
        orders.append(x.tolist())
    assert orders[0] != orders[1]


def test_images_are_augmented_as_the_base_was_trained():
    task = digits_task()
    shifted, _ = next(Batches(task, task.forget, torch.Generator().manual_seed(0)))
    plain = task.forget.batch(torch.arange(len(task.forget))).flatten(1)
    exact = (torch.cdist(shifted.flatten(1), plain).amin(1) == 0).double().mean()
    # one in nine is shifted by nothing
    assert 0 < exact < 0.5


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_a_step_descends(optimiser):
    task = task_of(2, 1)
    weight = nn.Parameter(torch.tensor([3.0]))
    config = GradientConfig(lr=0.1, weight_decay=0.0, optimiser=optimiser)
    Steps(task, config, "m", 1, [weight]).take(weight.square().sum())
    assert weight.item() == pytest.approx(3.0 - 0.1 * (6.0 if optimiser == "sgd" else 1.0), rel=1e-5)


def test_a_clipped_step_is_as_long_as_the_learning_rate_says():
    weight = nn.Parameter(torch.tensor([30.0, 40.0]))
    config = GradientConfig(lr=0.1, weight_decay=0.0, clip=1.0)
    Steps(task_of(2, 1), config, "m", 1, [weight]).take(weight.square().sum())
    assert torch.allclose(weight, torch.tensor([30.0 - 0.06, 40.0 - 0.08]))


def test_a_loss_that_is_not_finite_is_named_before_it_reaches_the_weights():
    weight = nn.Parameter(torch.tensor([1.0]))
    steps = Steps(task_of(2, 1), GradientConfig(), "some-method", 7, [weight])
    with pytest.raises(Diverged, match="some-method diverged: its loss is nan at step 1 of 7"):
        steps.take(weight.sum() * float("nan"))
    assert weight.item() == 1.0


def test_progress_counts_steps():
    seen = []
    task = digits_task(on_step=lambda step, steps: seen.append((step, steps)))
    weight = nn.Parameter(torch.ones(1))
    steps = Steps(task, GradientConfig(), "m", 3, [weight])
    for _ in range(3):
        steps.take(weight.sum())
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_all_but_batchnorm_trains_and_its_statistics_stay():
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2)).eval()
    assert train_with_fixed_statistics(network) is network
    assert network.training and network[0].training
    norm, x = network[1], torch.randn(8, 2, generator=torch.Generator().manual_seed(0)) + 5
    assert torch.allclose(norm(x), x / (1 + norm.eps) ** 0.5)
    assert torch.equal(norm.running_mean, torch.zeros(2))
    norm(x).sum().backward()
    assert norm.weight.grad is not None


@pytest.mark.parametrize(
    ("few", "many", "order"), [(3, 9, "T...T...T..."), (2, 3, "T.T.."), (0, 2, ".."), (2, 1, "TT.")]
)
def test_the_fewer_kind_is_spread_evenly(few, many, order):
    assert "".join("T" if is_few else "." for is_few in spread(few, many)) == order
