"""Oracles: networks trained without a class, as the base was trained, cached by what they were trained from."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from memmod.data import Dataset, without_classes
from memmod.errors import RunError, SelectionError
from memmod.runs.device import usable_device
from memmod.runs.folder import RunFolder, slug
from memmod.runs.kept import OnStep, Recipe, TrainingStep, each_trained
from memmod.runs.restore import Base
from memmod.training import TrainConfig, fit

# Raised whenever the same settings would train another oracle.
VERSION = 1


@dataclass(frozen=True)
class Oracle:
    """A network trained without some classes.

    Args:
        folder: its run folder.
        network: in eval mode.
        seed: of its weights, order and augmentation.
        metrics: accuracy on the test images of the forgotten classes and of the others, seconds of training.
    """

    folder: Path
    network: nn.Module
    seed: int
    metrics: dict[str, Any]


def oracle_folder(base: Base) -> Path:
    """Where the oracles of a base are kept: beside its run folder."""
    return base.folder.with_name(f"{base.folder.name}-oracles")


def oracle_seeds(base: Base, count: int) -> list[int]:
    """The seeds of the first `count` oracles: those after the base's own, so that none begins from its weights."""
    return [base_training(base).seed + 1 + number for number in range(count)]


def base_training(base: Base) -> TrainConfig:
    """How the base was trained.

    Raises:
        RunError: it was not trained by memmod, so that no oracle can be trained as it was.
    """
    settings = RunFolder.open(base.folder).settings
    if settings.get("epochs") == 0 or settings.get("pretrained"):
        raise RunError(
            f"the base in {base.folder} starts from pretrained weights, whose own training cannot be repeated without "
            "a class: audit a base that `memmod train` made from random weights"
        )
    return TrainConfig(**base.meta["training"])


def retrain(
    base: Base,
    without: Sequence[int],
    seeds: Sequence[int],
    dataset: Dataset,
    folder: str | os.PathLike[str] | None = None,
    *,
    device: str = "cpu",
    progress: Callable[[TrainingStep], None] | None = None,
) -> list[Oracle]:
    """Train networks as the base was trained, on its training images but those of some classes.

    Each is kept in a folder whose name holds a hash of its settings, seed and data; one that is there is loaded, one
    that was interrupted goes on from its checkpoint.

    Args:
        without: the classes to leave out, at least one; two must stay.
        seeds: one network each.
        dataset: what the base was trained on.
        folder: where the oracles are kept; default: `oracle_folder`.
        device: where they are trained. It is no setting of theirs: what is there is loaded, wherever it was made.

    Raises:
        SelectionError: classes that the base never knew, or too few that stay.
        RunError: the base was not trained here, a device that cannot be used, or a folder holds another run.
        DataError: a class that stays has no images.
    """
    where = usable_device(device)
    recipes = _recipes(base, without, seeds, dataset, folder)
    kept = each_trained(recipes, dataset, where, progress)
    return [Oracle(one.folder, one.network, seed, one.metrics) for one, seed in zip(kept, seeds, strict=True)]


def missing(
    base: Base,
    without: Sequence[int],
    seeds: Sequence[int],
    dataset: Dataset,
    folder: str | os.PathLike[str] | None = None,
) -> int:
    """How many of these oracles are still to be trained. Raises as `retrain` does."""
    return sum(not recipe.finished for recipe in _recipes(base, without, seeds, dataset, folder))


def finished(
    base: Base,
    without: Sequence[int],
    dataset: Dataset,
    folder: str | os.PathLike[str] | None = None,
    most: int = 4,
) -> list[Oracle]:
    """The finished ones of the first `most` oracles, none trained for it. Raises as `retrain` does."""
    seeds = oracle_seeds(base, most)
    recipes = _recipes(base, without, seeds, dataset, folder)
    return retrain(
        base, without, [seed for seed, recipe in zip(seeds, recipes, strict=True) if recipe.finished], dataset, folder
    )


def _recipes(
    base: Base,
    without: Sequence[int],
    seeds: Sequence[int],
    dataset: Dataset,
    folder: str | os.PathLike[str] | None,
) -> list[Recipe]:
    without = tuple(sorted(set(without)))
    _check_classes(without, base)
    config = base_training(base)
    retained = without_classes(dataset, without)
    place = oracle_folder(base) if folder is None else Path(folder)
    shared = {"oracle": VERSION, **network_settings(base, without, retained)}
    return [_recipe(base, without, replace(config, seed=seed), retained, place, shared) for seed in seeds]


def _recipe(
    base: Base, without: tuple[int, ...], config: TrainConfig, retained: Dataset, folder: Path, shared: dict[str, Any]
) -> Recipe:
    def train(network: nn.Module, checkpoint: Path, progress: OnStep) -> None:
        fit(network, retained, config, progress, checkpoint=checkpoint, resume=True)

    return Recipe(
        folder=folder,
        label=f"{label_of(base, without)}-seed{config.seed}",
        command="retrain",
        settings={**shared, **asdict(config)},
        model=base.meta["model"],
        training=config,
        without=without,
        make=lambda: base.fresh(config.seed),
        train=train,
    )


def network_settings(base: Base, without: Sequence[int], retained: Dataset) -> dict[str, Any]:
    """What every network trained without some classes depends on: architecture, classes and training images."""
    meta = base.meta
    return {
        "model": meta["model"],
        "num_classes": meta["num_classes"],
        "input_shape": list(meta["input_shape"]),
        "without": list(without),
        "data": meta["data"],
        "data_hash": retained.train.fingerprint(),
    }


def label_of(base: Base, without: Sequence[int]) -> str:
    """The classes' names as the beginning of a folder's name."""
    return slug("-".join(base.meta["class_names"][c] for c in without))[:80]


def _check_classes(without: tuple[int, ...], base: Base) -> None:
    classes = base.meta["num_classes"]
    unknown = [c for c in without if not 0 <= c < classes]
    if unknown or not without:
        raise SelectionError(
            f"class {', '.join(map(str, unknown)) or 'none'} cannot be left out: the base in {base.folder} knows the "
            f"classes 0 to {classes - 1}, and at least one must be named"
        )
    if classes - len(without) < 2:
        raise SelectionError(
            f"leaving out {len(without)} of {classes} classes leaves {classes - len(without)}; a network needs at "
            "least 2 to tell apart"
        )
