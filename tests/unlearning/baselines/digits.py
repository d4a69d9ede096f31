"""A small network trained on the digits once a session, and the task of forgetting some of them."""

from __future__ import annotations

import functools

import torch
from torch import nn

from memmod.data import Dataset, Split, load_data
from memmod.training import TrainConfig, fit
from memmod.unlearning.baselines import ForgetTask
from memmod.unlearning.baselines.tuning import accuracy
from tests.unlearning.problem import SmallNet

TRAINING = TrainConfig(epochs=15, batch_size=64, lr=5e-3, shift=1)
CLASSES = 10


@functools.cache
def digits() -> Dataset:
    return load_data("digits")


@functools.cache
def trained() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SmallNet(CLASSES)
    fit(network, digits(), TRAINING)
    return network.eval()


def of_classes(split: Split, classes: tuple[int, ...], inside: bool) -> Split:
    own = torch.isin(split.labels, torch.tensor(classes))
    return split.subset((own if inside else ~own).nonzero().flatten())


def digits_task(classes: tuple[int, ...] = (3,), **changes) -> ForgetTask:
    train = digits().train
    values = {
        "network": trained(),
        "retain": of_classes(train, classes, False),
        "forget": of_classes(train, classes, True),
        "classes": classes,
        "num_classes": CLASSES,
        "training": TRAINING,
    }
    return ForgetTask(**values | changes)


def on_test_images(task: ForgetTask, network: nn.Module) -> tuple[float, float]:
    """(Acc_f, Acc_r) on the test images."""
    test = digits().test
    return tuple(accuracy(task, network, of_classes(test, task.classes, inside)) for inside in (True, False))
