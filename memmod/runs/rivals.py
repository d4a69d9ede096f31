"""Rivals of an erased network: what the same images give without its reset layers, or without what the base learned."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from memmod.files.state_hash import state_sha256
from memmod.runs.kept import OnStep, Recipe
from memmod.runs.oracles import base_training, label_of, network_settings
from memmod.runs.restore import Base
from memmod.unlearning.erase import Erasing, erase

# Raised whenever the same settings would train another network.
VERSION = 1
BAKED, FINE_TUNING, FROM_SCRATCH, ERASED = "baked", "fine-tuning", "from scratch, same budget", "erased"
# Seeds of fresh networks begin here: no oracle of a base has them.
FRESH_SEEDS = 10_000


@dataclass(frozen=True)
class Erasure:
    """An erasure, or a rival of one: a network to begin with, and a plan.

    Args:
        name: of `ERASED`, `FINE_TUNING`, `FROM_SCRATCH`.
        start: makes the network before its first step; each call a network of its own.
        plan: without layers to draw anew where there is nothing to keep, or nothing to replace.
    """

    name: str
    start: Callable[[], nn.Module]
    plan: Erasing

    def describe(self) -> dict[str, Any]:
        """How it was trained, as JSON values."""
        training = self.plan.training
        return {
            "reset": "all layers" if self.name == FROM_SCRATCH else list(self.plan.reset),
            "steps": self.plan.steps,
            "batch_size": training.batch_size,
            "lr": training.lr,
            "weight_decay": training.weight_decay,
            "augmented": self.plan.augmented,
            "optimiser": self.plan.optimiser,
            "seed": training.seed,
        }


def fine_tuning(base: Base, plan: Erasing) -> Erasure:
    """The base trained on for as many retained images as an erasure, no layer drawn anew.

    Optimiser, learning rate, batch, weight decay and augmentation are those of the base's training, whose weights they
    suit: an erasure's are chosen for new layers.
    """
    training = base_training(base)
    steps = max(1, round(plan.images / training.batch_size))
    epochs = max(1, math.ceil(steps * training.batch_size / len(plan.retained.train)))
    own = replace(training, epochs=epochs, seed=plan.training.seed)
    plan = replace(plan, reset=(), steps=steps, training=own, augmented=1.0, optimiser="adamw")
    return Erasure(FINE_TUNING, lambda: _copy(base, base.model), plan)


def from_scratch(base: Base, plan: Erasing) -> Erasure:
    """All layers drawn anew, the plan otherwise an erasure's: images, batches, optimiser, learning rate, seed."""
    seed = FRESH_SEEDS + plan.training.seed
    return Erasure(FROM_SCRATCH, lambda: base.fresh(seed), replace(plan, reset=()))


def recipe(erasure: Erasure, base: Base, without: tuple[int, ...], folder: Path) -> Recipe:
    """How the network of an erasure is trained, and where it is kept.

    Args:
        without: the classes that its plan leaves out.
        folder: where such networks lie.
    """
    plan, seed = erasure.plan, FRESH_SEEDS + erasure.plan.training.seed

    def train(network: nn.Module, checkpoint: Path, progress: OnStep) -> None:
        erase(network, plan, base.fresh(seed), progress, checkpoint=checkpoint, resume=True)

    settings = {
        "erasure": VERSION,
        "name": erasure.name,
        **network_settings(base, without, plan.retained),
        "start": state_sha256(erasure.start()),
        "reset": list(plan.reset),
        "fresh_seed": seed if plan.reset else None,
        "steps": plan.steps,
        **asdict(plan.training),
        **({} if plan.augmented == 1 else {"augmented": plan.augmented}),
        **({} if plan.optimiser == "adamw" else {"optimiser": plan.optimiser}),
    }
    return Recipe(
        folder=folder,
        label=f"{label_of(base, without)}-{erasure.name.replace(',', '').replace(' ', '-')}-seed{plan.training.seed}",
        command="audit",
        settings=settings,
        model=base.meta["model"],
        training=plan.training,
        without=without,
        make=erasure.start,
        train=train,
    )


def _copy(base: Base, network: nn.Module) -> nn.Module:
    copy = base.fresh(0)
    copy.load_state_dict(network.state_dict())
    return copy.eval()
