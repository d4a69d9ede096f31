"""What methods by gradient share: batches, the optimiser's steps, and BatchNorm's statistics left alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memmod.data import Split, batches_of
from memmod.errors import RunError
from memmod.training import augment
from memmod.unlearning.baselines.method import ForgetTask, finite

OPTIMISERS = ("sgd", "adam", "adamw")


@dataclass(frozen=True)
class GradientConfig:
    """How a method by gradient trains; each method overrides the defaults with its paper's.

    Args:
        epochs: passes over the images that the method walks through, as its paper counts them.
        reference_epochs: for how many epochs the paper trained its base. The passes are scaled by the base's own epochs
            over these, so that the method takes the paper's share of a training; None: they are taken as they are.
        lr: learning rate, constant.
        momentum: of SGD.
        weight_decay: L2 of SGD and Adam, decoupled for AdamW.
        clip: largest norm of the gradient of all weights; None: as it comes.
        optimiser: "sgd", "adam" or "adamw".

    Raises:
        RunError: a value that makes no sense, by name.
    """

    epochs: float = 1.0
    reference_epochs: int | None = None
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float | None = None
    optimiser: str = "sgd"

    def __post_init__(self) -> None:
        check_positive(self, "epochs", "lr")
        check_positive(self, *(name for name in ("reference_epochs", "clip") if getattr(self, name) is not None))
        check_range(self, "momentum", 0, 1)
        check_range(self, "weight_decay", 0, math.inf)
        if self.optimiser not in OPTIMISERS:
            raise RunError(f"optimiser is {self.optimiser!r}; it must be one of {', '.join(map(repr, OPTIMISERS))}")

    def steps(self, task: ForgetTask, split: Split) -> int:
        """Batches in all of the method's passes over a split, at least one."""
        scale = 1.0 if self.reference_epochs is None else task.training.epochs / self.reference_epochs
        return max(1, math.ceil(self.epochs * scale * len(split) / task.training.batch_size))


def check_positive(config: object, *names: str) -> None:
    """Raises RunError where one of the named fields is not a finite number above 0."""
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and value > 0):
            raise RunError(f"{name} is {value}; it must be above 0")


def check_range(config: object, name: str, low: float, high: float) -> None:
    """Raises RunError where the named field is not between `low` and `high`, both included."""
    value = getattr(config, name)
    if not low <= value <= high:
        limits = f"at least {low}" if high == math.inf else f"between {low} and {high}"
        raise RunError(f"{name} is {value}; it must be {limits}")


class Batches:
    """Batches of a split without end, in a new order at each pass, augmented as the base's training was.

    Args:
        task: says how large batches are, how images are augmented and where they go.
        split: images ``[N, ...]``.
        generator: of the orders and the augmentation.
        labels: int64 ``[N]`` to give out instead of the split's own.
    """

    def __init__(
        self, task: ForgetTask, split: Split, generator: torch.Generator, labels: Tensor | None = None
    ) -> None:
        self.task, self.split, self.generator = task, split, generator
        self.labels = split.labels if labels is None else labels
        self.waiting: list[Tensor] = []

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        """(images ``[B, ...]``, labels ``[B]``) on the task's device."""
        if not self.waiting:
            order = torch.randperm(len(self.split), generator=self.generator)
            self.waiting = list(reversed(batches_of(order, self.task.training.batch_size)))
        chosen = self.waiting.pop()
        x = augment(self.split.batch(chosen), self.task.training, self.generator)
        return x.to(self.task.device), self.labels[chosen].to(self.task.device)


class Steps:
    """The optimiser of a run: checks each loss, clips each gradient, counts, and tells the task how far it is.

    Args:
        task: whose `on_step` is called after every step.
        config: optimiser and learning rate.
        method: named where the loss diverges.
        total: how many steps there will be.
        parameters: what is trained.
    """

    def __init__(
        self, task: ForgetTask, config: GradientConfig, method: str, total: int, parameters: Iterable[Tensor]
    ) -> None:
        self.task, self.config, self.method, self.total = task, config, method, total
        self.parameters = list(parameters)
        self.optimiser = _optimiser(config, self.parameters)
        self.done = 0

    def take(self, loss: Tensor) -> None:
        """One step down the loss.

        Raises:
            Diverged: it is not finite.
        """
        self.done += 1
        self.optimiser.zero_grad(set_to_none=True)
        finite(loss, self.method, self.done, self.total).backward()
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimiser.step()
        self.task.on_step(self.done, self.total)


def _optimiser(config: GradientConfig, parameters: list[Tensor]) -> torch.optim.Optimizer:
    if config.optimiser == "sgd":
        return torch.optim.SGD(parameters, config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    kind = torch.optim.Adam if config.optimiser == "adam" else torch.optim.AdamW
    return kind(parameters, config.lr, weight_decay=config.weight_decay)


def train_with_fixed_statistics(network: nn.Module) -> nn.Module:
    """The network in training mode, but for BatchNorm: it normalises by its running statistics and leaves them.

    Batches of forgotten images alone have other statistics than the images that the network will see: normalised by
    their own they train another network, and the running ones drift away from the retained images. On retained batches
    alone training mode does not do either: their own statistics hide what steps on forgotten images do to the network
    in eval mode, which is the one that is used. On digits, with the class forgotten, the four methods that have both
    kinds of batches keep .92 to .97 accuracy on the others this way, and .77 to .92 by training mode on retained ones.
    """
    network.train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return network


def spread(few: int, many: int) -> list[bool]:
    """An order of `few` True and `many` False in which the True stand evenly apart, and one comes first."""
    total = few + many
    return [-(-(i + 1) * few // total) > -(-i * few // total) for i in range(total)]
