"""Oracles: networks trained without a class, as the base was trained, cached by what they were trained from."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from memmod.data import Dataset, without_classes
from memmod.errors import RunError, SelectionError
from memmod.files.checkpoint import FILE_NAME as CHECKPOINT
from memmod.files.strict_json import canonical
from memmod.runs.device import usable_device
from memmod.runs.folder import METRICS, RunFolder, remove_checkpoint, slug
from memmod.runs.restore import Base
from memmod.training import TrainConfig, accuracies, fit
from memmod.zoo import base_meta, create_model, load_base, save_base

# Raised whenever the same settings would train another oracle.
VERSION = 1


@dataclass(frozen=True)
class OracleStep:
    """Where the training of oracles is: oracle `number` of `count`, step `step` of `steps`, its loss."""

    number: int
    count: int
    step: int
    steps: int
    loss: float


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
    progress: Callable[[OracleStep], None] | None = None,
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
    plan = _plan(base, without, dataset, folder)

    def stepped(number: int) -> Callable[[int, int, float], None]:
        def report(step: int, steps: int, loss: float) -> None:
            if progress is not None:
                progress(OracleStep(number + 1, len(seeds), step, steps, loss))

        return report

    return [_one(plan, seed, where, stepped(number)) for number, seed in enumerate(seeds)]


def missing(
    base: Base,
    without: Sequence[int],
    seeds: Sequence[int],
    dataset: Dataset,
    folder: str | os.PathLike[str] | None = None,
) -> int:
    """How many of these oracles are still to be trained. Raises as `retrain` does."""
    plan = _plan(base, without, dataset, folder)
    return sum(not (plan.path(seed) / METRICS).exists() for seed in seeds)


def trained(
    base: Base,
    without: Sequence[int],
    dataset: Dataset,
    folder: str | os.PathLike[str] | None = None,
    most: int = 4,
) -> list[Oracle]:
    """The finished ones of the first `most` oracles, none trained for it. Raises as `retrain` does."""
    plan = _plan(base, without, dataset, folder)
    return [
        _one(plan, seed, lambda *_: None) for seed in oracle_seeds(base, most) if (plan.path(seed) / METRICS).exists()
    ]


def _plan(base: Base, without: Sequence[int], dataset: Dataset, folder: str | os.PathLike[str] | None) -> _Plan:
    without = tuple(sorted(set(without)))
    _check_classes(without, base)
    config = base_training(base)
    retained = without_classes(dataset, without)
    place = oracle_folder(base) if folder is None else Path(folder)
    return _Plan(base, without, config, retained, place, retained.train.fingerprint())


@dataclass(frozen=True)
class _Plan:
    """What oracles are trained from, and where they lie: in folders whose names hold a hash of it."""

    base: Base
    without: tuple[int, ...]
    config: TrainConfig
    dataset: Dataset
    folder: Path
    data: str

    def settings(self, seed: int) -> dict[str, Any]:
        meta = self.base.meta
        return {
            "oracle": VERSION,
            "model": meta["model"],
            "num_classes": meta["num_classes"],
            "input_shape": list(meta["input_shape"]),
            "without": list(self.without),
            "data": meta["data"],
            "data_hash": self.data,
            **asdict(replace(self.config, seed=seed)),
        }

    def path(self, seed: int) -> Path:
        key = sha256(canonical(self.settings(seed))).hexdigest()[:10]
        names = "-".join(self.base.meta["class_names"][c] for c in self.without)
        return self.folder / f"{slug(names)[:80]}-seed{seed}-{key}"

    def network(self, seed: int) -> nn.Module:
        meta = self.base.meta
        return create_model(meta["model"], meta["num_classes"], tuple(meta["input_shape"]), False, seed)


def _one(plan: _Plan, seed: int, device: torch.device, progress: Callable[[int, int, float], None]) -> Oracle:
    path, config, dataset = plan.path(seed), replace(plan.config, seed=seed), plan.dataset
    run = RunFolder.start(path, "retrain", plan.settings(seed), resume=True)
    if not run.file(METRICS).exists():
        network = plan.network(seed).to(device)
        fit(network, dataset, config, progress, checkpoint=run.file(CHECKPOINT), resume=True)
        by_class = accuracies(network, dataset.test, dataset.num_classes)[1]
        metrics = {"class_accuracy": by_class, "acc_forget": [by_class[c] for c in plan.without]}
        save_base(path, network, base_meta(plan.base.meta["model"], dataset, config, metrics))
        run.write_metrics(metrics)
    remove_checkpoint(run)
    network, card = load_base(path)
    if card["training"] != asdict(config):
        raise RunError(f"the oracle in {path} was trained with other settings than its name says: delete its folder")
    return Oracle(path, network, seed, run.metrics())


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
