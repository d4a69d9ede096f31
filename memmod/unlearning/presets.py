"""How the memories are trained: the settings, and the presets that were measured to work."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from memmod.errors import RunError
from memmod.files.strict_json import Origin, check
from memmod.unlearning.objectives import get_objective

if TYPE_CHECKING:
    from memmod.model import ModulatedModel


@dataclass(frozen=True)
class UnlearnConfig:
    """Settings of one round of unlearning; frozen, travels in the checkpoint and in the memory file's card.

    Args:
        objective: a name of `objective_names()`.
        lambdas: weights of the retain term, the forget term and the mean of 1 - gate.
        lr: Adam's learning rate.
        steps: optimiser steps.
        batch_size: images per step, half of them to forget.
        margin: what a selected class's logit must lose by: it is raised by so much in every loss. Without one the loss
            is content once the training images of a class are forgotten, before all of its test images are.
        expansion: T, how often a retained image comes, each time with another selection.
        max_set_size: S, selections are random sets of 1 to S classes; lowered to C - 1 where C is small.
        statistics_fraction: share of the steps in which one class serves the whole batch and normalised units are
            standardised with the batch's own statistics; without effect on networks that have none.
        clip: largest norm of the gradient of all memories together.
        seed: of every draw.
        eval_every: steps between two evaluations on the validation split; the last step is always evaluated.
        validation_fraction: share of the training images of each class that is held out to choose the best state.
        validation_images: at most about that many of them are used.
        validation_others: how many other classes each validation image is evaluated with.

    Raises:
        RunError: a value out of its range, or an unknown objective.
    """

    objective: str = "masked-distillation"
    lambdas: tuple[float, float, float] = (1.0, 1.0, 0.1)
    lr: float = 0.1
    steps: int = 1000
    batch_size: int = 128
    margin: float = 0.0
    expansion: int = 1
    max_set_size: int = 3
    statistics_fraction: float = 0.5
    clip: float = 1.0
    seed: int = 0
    eval_every: int = 100
    validation_fraction: float = 0.1
    validation_images: int = 2000
    validation_others: int = 3

    def __post_init__(self) -> None:
        get_objective(self.objective)
        lambdas = tuple(map(float, self.lambdas))
        if len(lambdas) != 3 or not all(0 <= value < math.inf for value in lambdas):
            raise RunError(f"lambdas is {self.lambdas}; it must be three weights of at least 0: retain, forget, gates")
        object.__setattr__(self, "lambdas", lambdas)
        smallest = {
            "steps": 1,
            "batch_size": 2,
            "expansion": 1,
            "max_set_size": 1,
            "eval_every": 1,
            "validation_images": 1,
            "validation_others": 1,
        }
        for name, least in smallest.items():
            if getattr(self, name) < least:
                raise RunError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise RunError(f"{name} is {getattr(self, name)}; it must be a finite number greater than 0")
        if not 0 <= self.margin < math.inf:
            raise RunError(f"margin is {self.margin}; it must be a finite number of at least 0")
        if not 0 <= self.seed < 2**63:
            raise RunError(f"seed is {self.seed}; it must lie between 0 and 2**63 - 1")
        if not 0 <= self.statistics_fraction <= 1:
            raise RunError(f"statistics_fraction is {self.statistics_fraction}; it must lie between 0 and 1")
        if not 0 < self.validation_fraction < 1:
            raise RunError(f"validation_fraction is {self.validation_fraction}; it must lie between 0 and 1")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self) | {"lambdas": list(self.lambdas)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> UnlearnConfig:
        """The config of a `to_dict`.

        Raises:
            RunError: unknown fields, or values of another type or out of range.
        """
        unknown = sorted(values.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise RunError(f"unknown fields of UnlearnConfig: {', '.join(unknown)}; this memmod may be too old")
        return check(values, cls, Origin("the stored UnlearnConfig", RunError, "store it again"))


# Chosen on digits held out of base and memories, 3 bases each, and on held-out training images of Fashion-MNIST. A ViT:
# selected logits lose by at least 0.2 to 0.4 without a margin, by 1.8 to 2.1 with 2, by 4.3 to 4.6 with 5; retained
# accuracy pays 0.2 points for either, on Fashion-MNIST 0.4 and 0.7. A ResNet: the worst class with BatchNorm statistics
# estimated anew is at 9 to 11 % without a margin, at 0 with 1 and 2; Fashion-MNIST pays 0.3 and 0.6 points.
MARGIN, MARGIN_WITH_BATCHNORM = 2.0, 1.0


def default(wf: ModulatedModel, **changes: Any) -> UnlearnConfig:
    """The measured recipe: with BatchNorm 1,000 steps with statistics in the loop, else 800, and a margin in each."""
    with_norms = UnlearnConfig(steps=1000, margin=MARGIN_WITH_BATCHNORM)
    config = with_norms if wf.has_batch_statistics else UnlearnConfig(steps=800, margin=MARGIN)
    return replace(config, **changes)


def fast(wf: ModulatedModel, **changes: Any) -> UnlearnConfig:
    """A first look in seconds: 200 steps, single classes only, no statistics in the loop."""
    return replace(UnlearnConfig(steps=200, max_set_size=1, statistics_fraction=0.0), **changes)


PRESETS: dict[str, Callable[..., UnlearnConfig]] = {"default": default, "fast": fast}
"""Functions from a modulated model and changes to settings, by the preset's name."""


def preset(name: str, wf: ModulatedModel, **changes: Any) -> UnlearnConfig:
    """The settings of a preset for a modulated model, with some of them changed.

    Args:
        name: of `PRESETS`.
        changes: fields of `UnlearnConfig` that get other values.

    Raises:
        RunError: there is no such preset.
    """
    if name not in PRESETS:
        raise RunError(f"unknown preset {name!r}; it must be one of {', '.join(map(repr, PRESETS))}")
    return PRESETS[name](wf, **changes)
