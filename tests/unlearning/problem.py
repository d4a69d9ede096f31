"""A small problem that a network learns in a second: noisy images of a few prototypes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from memmod.data import Dataset, TensorSplit
from memmod.model import ModulatedModel, modulate
from memmod.unlearning import UnlearnConfig

CLASSES = 4
SHAPE = (1, 8, 8)
NAMES = ("ant", "bee", "cow", "dog")


class SmallNet(nn.Module):
    """Two convolutions with BatchNorm and a head; `norm=False` leaves the BatchNorm out."""

    def __init__(self, num_classes: int, norm: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1),
            nn.BatchNorm2d(24) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(24, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32) if norm else nn.Identity(),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Linear(128, num_classes)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


def split(images_per_class: int, seed: int, classes: int = CLASSES) -> TensorSplit:
    prototypes = torch.randn(classes, *SHAPE, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(classes).repeat_interleave(images_per_class)
    noise = torch.randn(len(labels), *SHAPE, generator=torch.Generator().manual_seed(seed))
    return TensorSplit(prototypes[labels] + 0.7 * noise, labels, 1.0, (0.0,), (1.0,))


def dataset(classes: int = CLASSES) -> Dataset:
    return Dataset("prototypes", split(60, 1, classes), split(25, 2, classes), NAMES[:classes], SHAPE)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """A scope whose results are, to the bit, those of a process started with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
@one_thread()
def trained_base(norm: bool = True, classes: int = CLASSES) -> nn.Module:
    data = dataset(classes).train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SmallNet(classes, norm)
    x = data.batch(torch.arange(len(data)))
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(80):
        optimiser.zero_grad()
        F.cross_entropy(net(x), data.labels).backward()
        optimiser.step()
    return net.eval()


def modulated(norm: bool = True, classes: int = CLASSES, **options) -> ModulatedModel:
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    return modulate(trained_base(norm, classes), classes, x, class_names=NAMES[:classes], **options)


def quick(**changes) -> UnlearnConfig:
    values = {"steps": 12, "batch_size": 32, "eval_every": 5, "validation_fraction": 0.2}
    return UnlearnConfig(**values | changes)
