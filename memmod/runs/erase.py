"""What `memmod erase` does: a run of unlearning in, an ordinary network without some classes out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from torch import nn

from memmod.data import Dataset, check_classes
from memmod.errors import RunError
from memmod.files.checkpoint import FILE_NAME as CHECKPOINT
from memmod.runs.device import usable_device
from memmod.runs.folder import BASE, CONFIG, METRICS, SCORECARD, RunFolder, remove_checkpoint, slug, write_json
from memmod.runs.oracles import base_training
from memmod.runs.restore import Base, Unlearned, restore_unlearned
from memmod.runs.rivals import FRESH_SEEDS
from memmod.training import accuracies
from memmod.unlearning.erase import EraseConfig, Erasing, default_erasing, erase, plan_erasure
from memmod.zoo import base_meta, load_base, save_base

FIELDS = {field.name for field in fields(EraseConfig)}
OnStep = Callable[[int, int, float], None]


class EraseSettings(msgspec.Struct, frozen=True):
    """What is read again of the settings of `memmod erase`."""

    unlearned: str
    forget: Annotated[tuple[int, ...], msgspec.Meta(min_length=1)]
    threshold: float
    budget: float
    lr: float
    batch_size: int
    weight_decay: float
    reset: tuple[str, ...]
    seed: int
    augmented: float = 1.0
    optimiser: str = "adamw"

    def config(self) -> EraseConfig:
        """How the network was erased."""
        return EraseConfig(**{name: value for name, value in msgspec.structs.asdict(self).items() if name in FIELDS})


@dataclass(frozen=True)
class EraseOptions:
    """What to erase how: the fields of `EraseConfig` that differ from the base's defaults.

    `threshold`: gates of the baked network below it are exactly 0.
    """

    changes: dict[str, Any]
    threshold: float = 0.3


@dataclass(frozen=True)
class Erased:
    """An erased network, the run it was made from, and what was measured on the test split."""

    run: RunFolder
    unlearned: Unlearned
    forget: tuple[int, ...]
    network: nn.Module
    metrics: dict[str, Any]

    @property
    def base(self) -> Base:
        return self.unlearned.base

    def plan(self, dataset: Dataset) -> Erasing:
        """What was done, from the run's settings. Raises as `plan_erasure` does."""
        config = self.run.settings_as(EraseSettings).config()
        return plan_erasure(self.base.model, dataset, self.forget, base_training(self.base), config)


def erased_folder(unlearned: Unlearned, forget: Sequence[int]) -> Path:
    """Where `memmod erase` puts a network unless told otherwise: beside the run."""
    names = unlearned.base.meta["class_names"]
    path = unlearned.run.path
    return path.with_name(f"{path.name}-erased-{slug('-'.join(names[c] for c in sorted(set(forget))))}")


def erase_run(
    unlearned: Unlearned,
    forget: Sequence[int],
    dataset: Dataset,
    out: str | os.PathLike[str] | None = None,
    options: EraseOptions | None = None,
    *,
    device: str = "cpu",
    resume: bool = False,
    overwrite: bool = False,
    on_plan: Callable[[Erasing], None] = lambda _plan: None,
    progress: OnStep | None = None,
) -> Erased:
    """Erase classes from a run's baked network, and keep the network in a run folder, an ordinary base's two files.

    The network is kept before it is measured. The run itself stays as it is.

    Args:
        dataset: what the base was trained on.
        out: default: `erased_folder`.
        device: where the training runs. It is no setting of the run: a checkpoint goes on wherever it is resumed.
        resume: go on from the checkpoint of an interrupted run of the same settings. A finished run is returned as it
            is.
        on_plan: called with what will be done, before the first step.

    Raises:
        MemmodError: classes that cannot be erased, too small a budget, a base that memmod did not train, an existing
            run folder, a device that cannot be used, or a loss that is not finite.
    """
    where = usable_device(device)
    options = options or EraseOptions({})
    base, forget = unlearned.base, tuple(sorted(set(forget)))
    training = base_training(base)
    config = EraseConfig(**{**asdict(default_erasing(base.model, training)), **options.changes})
    plan = plan_erasure(base.model, dataset, forget, training, config)
    settings = {
        "data": base.meta["data"],
        "unlearned": str(unlearned.run.path),
        "base": str(base.folder),
        "model": base.meta["model"],
        "forget": list(forget),
        "threshold": options.threshold,
        "steps": plan.steps,
        **config.to_dict(),
        "reset": list(plan.reset),
    }
    x = dataset.test.batch(torch.arange(min(len(dataset.test), 64)))
    network = unlearned.wf.bake(set(forget), options.threshold, "base", x)
    run = RunFolder.start(
        out or erased_folder(unlearned, forget), "erase", settings, resume=resume, overwrite=overwrite
    )
    if run.file(METRICS).exists():
        remove_checkpoint(run)
        return restore_erased(run.path, base.folder, unlearned)
    on_plan(plan)
    fresh = base.fresh(FRESH_SEEDS + config.seed)
    erase(network.to(where), plan, fresh, progress, checkpoint=run.file(CHECKPOINT), resume=resume)
    meta = base_meta(base.meta["model"], dataset, plan.training, {}) | {"erased": list(forget), "images": plan.images}
    save_base(run.path, network, meta)
    by_class = accuracies(network, dataset.test, dataset.num_classes)[1]
    stays = [value for c, value in enumerate(by_class) if c not in forget]
    metrics = {
        "class_accuracy": by_class,
        "acc_forget": [by_class[c] for c in forget],
        "mean_retain": sum(stays) / len(stays),
        "images": plan.images,
        "share_of_training": plan.images / (training.epochs * len(dataset.train)),
    }
    save_base(run.path, network, meta | {"metrics": metrics})
    run.write_metrics(metrics)
    remove_checkpoint(run)
    return Erased(run, unlearned, forget, network.cpu(), metrics)


def restore_erased(
    folder: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    unlearned: Unlearned | None = None,
) -> Erased:
    """Load what `memmod erase` wrote to `folder`; `base` where the base has moved since.

    Raises:
        MemmodError: it is no such run, is damaged or not finished, or the run it came from is not there.
    """
    run = RunFolder.open(folder)
    if run.command != "erase":
        raise RunError(f"{folder} holds a run of `memmod {run.command}`: name one of `memmod erase`")
    run.existing(BASE)
    network, card = load_base(folder)
    settings = run.settings_as(EraseSettings)
    if list(settings.forget) != card.get("erased"):
        raise RunError(f"{run.file(CONFIG)} and base.json in {folder} name different classes: run it again")
    if unlearned is None:
        unlearned = restore_unlearned(settings.unlearned, base)
    return Erased(run, unlearned, settings.forget, network, run.metrics())


def restore_run(folder: str | os.PathLike[str], base: str | os.PathLike[str] | None = None) -> Unlearned | Erased:
    """A run of `memmod unlearn` or of `memmod erase`. Raises as `restore_unlearned` does."""
    if RunFolder.open(folder).command == "erase":
        return restore_erased(folder, base)
    return restore_unlearned(folder, base)


@dataclass(frozen=True)
class ErasedAccuracies:
    """Accuracy on each class's test images, of the original and of the erased network."""

    class_names: tuple[str, ...]
    forget: tuple[int, ...]
    original: tuple[float, ...]
    erased: tuple[float, ...]

    def mean_retain(self, values: Sequence[float]) -> float:
        """Over the classes that stay."""
        kept = [value for c, value in enumerate(values) if c not in self.forget]
        return sum(kept) / len(kept)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)


def evaluate_erased(erased: Erased, dataset: Dataset) -> ErasedAccuracies:
    """Measure an erased network on the test split beside the original, and record it in the run folder.

    Raises:
        DataError: a class without test images.
    """
    check_classes(f"the test split of {dataset.name}", dataset.test.labels, dataset.class_names)
    found = [
        tuple(accuracies(network, dataset.test, dataset.num_classes)[1])
        for network in (erased.base.model, erased.network)
    ]
    result = ErasedAccuracies(tuple(dataset.class_names), erased.forget, *found)
    write_json(erased.run.file(SCORECARD), result.to_dict())
    return result
