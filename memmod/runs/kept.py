"""Networks that are trained once: kept in run folders whose names hold a hash of everything that they depend on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from memmod.data import Dataset
from memmod.errors import RunError
from memmod.files.checkpoint import FILE_NAME as CHECKPOINT
from memmod.files.strict_json import canonical
from memmod.runs.folder import METRICS, RunFolder, remove_checkpoint
from memmod.training import TrainConfig, accuracies
from memmod.zoo import base_meta, load_base, save_base

OnStep = Callable[[int, int, float], None]


@dataclass(frozen=True)
class TrainingStep:
    """Where the training of several networks is: network `number` of `count`, step `step` of `steps`, its loss."""

    number: int
    count: int
    step: int
    steps: int
    loss: float


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, and where it is kept.

    Args:
        folder: where such networks lie, each in a run folder of its own.
        label: how the folder's name begins.
        command: which command the run folder is one of.
        settings: everything that the trained weights depend on, as JSON values; their hash ends the folder's name.
        model: the architecture's name, as `create_model` takes it.
        training: what base.json says of the training.
        without: classes of which no image is looked at.
        make: the network before its first step, on the CPU.
        train: trains it in place, resuming from the checkpoint where it is there: (network, checkpoint, progress).
    """

    folder: Path
    label: str
    command: str
    settings: dict[str, Any]
    model: str
    training: TrainConfig
    without: tuple[int, ...]
    make: Callable[[], nn.Module]
    train: Callable[[nn.Module, Path, OnStep], Any]

    @property
    def path(self) -> Path:
        """Its run folder."""
        return self.folder / f"{self.label}-{sha256(canonical(self.settings)).hexdigest()[:10]}"

    @property
    def finished(self) -> bool:
        """Whether it has been trained and measured."""
        return (self.path / METRICS).exists()


@dataclass(frozen=True)
class Kept:
    """A trained network in eval mode, on the CPU.

    Args:
        folder: its run folder.
        network: in eval mode.
        metrics: accuracy by class and on the classes it was trained without, on test images; seconds of training, None
            where they were not measured.
    """

    folder: Path
    network: nn.Module
    metrics: dict[str, Any]


def trained(recipe: Recipe, dataset: Dataset, device: torch.device, progress: OnStep | None = None) -> Kept:
    """The network of a recipe: loaded where it is there, else trained, from its checkpoint where it was interrupted.

    It is kept before it is measured.

    Args:
        dataset: whose test images measure it.
        device: where it is trained.
        progress: called after each step with (step, steps, loss).

    Raises:
        MemmodError: its folder holds another run or damaged files, or the loss is not finite.
    """
    run = RunFolder.start(recipe.path, recipe.command, recipe.settings, resume=True)
    if not recipe.finished:
        network, clock = recipe.make().to(device), _Clock(progress)
        recipe.train(network, run.file(CHECKPOINT), clock)
        save_base(run.path, network, base_meta(recipe.model, dataset, recipe.training, {}))
        by_class = accuracies(network, dataset.test, dataset.num_classes)[1]
        metrics = {
            "class_accuracy": by_class,
            "acc_forget": [by_class[c] for c in recipe.without],
            "seconds": clock.seconds,
        }
        save_base(run.path, network, base_meta(recipe.model, dataset, recipe.training, metrics))
        run.write_metrics(metrics)
    remove_checkpoint(run)
    network, card = load_base(run.path)
    if card["training"] != asdict(recipe.training):
        raise RunError(
            f"the network in {run.path} was trained with other settings than its name says: delete its folder"
        )
    return Kept(run.path, network, run.metrics())


def each_trained(
    recipes: Sequence[Recipe],
    dataset: Dataset,
    device: torch.device,
    progress: Callable[[TrainingStep], None] | None = None,
) -> Iterator[Kept]:
    """The networks of several recipes, each trained when it is its turn. Raises as `trained` does."""

    def stepped(number: int) -> OnStep:
        def report(step: int, steps: int, loss: float) -> None:
            if progress is not None:
                progress(TrainingStep(number + 1, len(recipes), step, steps, loss))

        return report

    for number, recipe in enumerate(recipes):
        yield trained(recipe, dataset, device, stepped(number))


class _Clock:
    """How long a whole training takes, from the steps of this process: a resumed one has others behind it."""

    def __init__(self, then: OnStep | None) -> None:
        self.then = then
        self.seconds: float | None = None
        self.made, self.spent, self.since = 0, 0.0, time.monotonic()

    def __call__(self, step: int, steps: int, loss: float) -> None:
        self.made += 1
        self.spent += time.monotonic() - self.since
        self.seconds = self.spent / self.made * steps
        if self.then is not None:
            self.then(step, steps, loss)
        self.since = time.monotonic()
