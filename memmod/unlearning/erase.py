"""Erasing: the second stage behind a baked network. Its upper layers are drawn anew, and all of its weights are trained
on retained images alone.

A gate suppresses a class; the features below it still tell it from others. What knows the class lies mostly in the last
stage, and what is left below it goes where all weights move.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from memmod.data import Dataset, without_classes
from memmod.errors import ModelError, RunError, SelectionError
from memmod.evaluation.features import PENULTIMATE, feature_points, modules_that_run
from memmod.training import OPTIMISERS, TrainConfig, fit

# Fewer cannot warm up and come down again.
LEAST_STEPS = 50


@dataclass(frozen=True)
class EraseConfig:
    """How a network is erased.

    Args:
        budget: images that the training may see, as a share of those that the base's training saw.
        lr: the highest learning rate.
        batch_size: images a step.
        weight_decay: decoupled.
        reset: names of the layers to draw anew, with all that is inside of them; empty: `upper_layers`.
        blocks: the last ones, which are drawn anew where `reset` is empty; one block stays at least.
        augmented: share of the steps, the first ones, with the base's augmentation; the others see images as they are.
        optimiser: "muon", for the weights of `memmod.muon.hidden_weights`, beside AdamW for all others; or "adamw".
        seed: of the new weights, the order and the augmentation.
    """

    budget: float = 0.2
    lr: float = 1e-2
    batch_size: int = 64
    weight_decay: float = 0.01
    reset: tuple[str, ...] = ()
    blocks: int = 1
    augmented: float = 1.0
    optimiser: str = "muon"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise RunError(f"budget is {self.budget}; a share of the base's training is above 0 and at most 1")
        if not self.lr > 0 or self.weight_decay < 0:
            raise RunError(
                f"lr is {self.lr} and weight_decay {self.weight_decay}; lr must be above 0, the other at least 0"
            )
        if not 0 <= self.augmented <= 1:
            raise RunError(f"augmented is {self.augmented}; a share of the steps is from 0 to 1")
        if self.blocks < 1:
            raise RunError(f"blocks is {self.blocks}; at least the last block is drawn anew")
        if self.optimiser not in OPTIMISERS:
            raise RunError(f"optimiser is {self.optimiser!r}; it must be one of {', '.join(OPTIMISERS)}")
        if self.batch_size < 2:
            raise RunError(f"batch_size is {self.batch_size}; new layers need at least 2 images a step")

    def to_dict(self) -> dict[str, Any]:
        """Every field as a JSON value."""
        return asdict(self) | {"reset": list(self.reset)}


def default_erasing(network: nn.Module, training: TrainConfig) -> EraseConfig:
    """The settings for a network that was trained so.

    Chosen on images of Fashion-MNIST, held out of the erasing (the base saw them), one seed each: half the base's
    batch, and 3.3 times its learning rate, without BatchNorm 1.5 times. Muon raises Acc_r by 0.6 (shirt), 0.7 (sandal)
    and 1.0 (trouser) points, a ViT's, whose last two blocks are drawn anew for it, by 0.6 (shirt) and 1.0 (sandal), and
    changes the probe's recall of the class by -0.012 to 0.008. With AdamW, the last 15 % of the steps without
    augmentation: the ResNet's Acc_r rises by 0.4 (sandal), 0.1 (trouser) and 0.3 (shirt) points, the probe's recall of
    the class by 0.004, 0.002 and 0.008; a ViT gains nothing.
    """
    norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    return EraseConfig(
        lr=training.lr * (10 / 3 if norms else 1.5),
        batch_size=max(2, training.batch_size // 2),
        blocks=1 if norms else 2,
        augmented=0.85 if norms else 1.0,
        seed=training.seed,
    )


def upper_layers(network: nn.Module, x: Tensor, count: int = 1) -> tuple[str, ...]:
    """The names of all that runs behind a block: the last stages, norms behind them, and the head.

    Args:
        x: a batch ``[B, ...]``, B ≥ 2.
        count: the blocks, of which one stays at least.

    Raises:
        ModelError: the network has fewer than two blocks that memmod can find.
    """
    blocks = [point for point in feature_points(network, x) if point != PENULTIMATE]
    if len(blocks) < 2:
        raise ModelError(
            f"{type(network).__name__} has no stages that memmod can find: name the layers to draw anew (reset)"
        )
    ran = modules_that_run(network, x)
    lowest = blocks[max(0, len(blocks) - 1 - count)]
    if lowest not in ran:
        raise ModelError(f"{type(network).__name__} wraps another network: erase that one, or name layers (reset)")
    cut = len(ran) - ran[::-1].index(lowest)
    lower = set(ran[:cut])
    upper = dict.fromkeys(
        name for name in ran[cut:] if name not in lower and not any(below.startswith(f"{name}.") for below in lower)
    )
    modules = dict(network.named_modules())
    return tuple(
        name
        for name in upper
        if modules[name].state_dict() and not any(name.startswith(f"{other}.") for other in upper)
    )


def draw_anew(network: nn.Module, fresh: nn.Module, names: Sequence[str]) -> None:
    """Give the layers of these names, and all inside of them, the parameters and buffers of a fresh network.

    Raises:
        ModelError: a name that the network has not, or a fresh network of another architecture.
    """
    unknown = [name for name in names if name not in dict(network.named_modules()) or not name]
    if unknown:
        raise ModelError(f"{type(network).__name__} has no layer {unknown[0]!r} to draw anew: see named_modules()")
    own, new = network.state_dict(), fresh.state_dict()
    chosen = [key for key in own if any(f"{key}.".startswith(f"{name}.") for name in names)]
    for key in chosen:
        if key not in new or new[key].shape != own[key].shape:
            raise ModelError(
                f"the fresh network has no {key!r} of shape {tuple(own[key].shape)}: make it as the base was"
            )
        own[key].copy_(new[key])


@dataclass(frozen=True)
class Erasing:
    """What an erasure will do: the layers drawn anew, its steps, the share of them whose images are augmented, the
    optimiser, and the retained images.
    """

    reset: tuple[str, ...]
    steps: int
    training: TrainConfig
    retained: Dataset
    augmented: float
    optimiser: str

    @property
    def images(self) -> int:
        """Images that the training sees, each time counted."""
        return self.steps * self.training.batch_size


def plan_erasure(
    network: nn.Module,
    data: Dataset,
    forget: Sequence[int],
    training: TrainConfig,
    config: EraseConfig | None = None,
) -> Erasing:
    """What erasing these classes takes, checked before the long part.

    Args:
        network: of the base's architecture.
        data: what the base was trained on, the forgotten classes' images included.
        forget: the classes, at least one; two must stay.
        training: how the base was trained: its augmentation, and the images that `budget` is a share of.
        config: default: `default_erasing`.

    Raises:
        SelectionError: no class, an unknown one, or fewer than two that stay.
        DataError: a class that stays has no images.
        RunError: a budget of fewer than 50 steps.
        ModelError: a network without stages and without `reset`, or a layer that it has not.
    """
    config = config or default_erasing(network, training)
    named = sorted(set(forget))
    if not named or not all(0 <= c < data.num_classes for c in named) or data.num_classes - len(named) < 2:
        raise SelectionError(
            f"the classes {named} cannot be erased: name at least one of 0 to {data.num_classes - 1}, and leave two"
        )
    retained = without_classes(data, named)
    steps = round(config.budget * training.epochs * len(data.train) / config.batch_size)
    if steps < LEAST_STEPS:
        least = LEAST_STEPS * config.batch_size / (training.epochs * len(data.train))
        raise RunError(
            f"a budget of {config.budget:g} of the base's training is {steps} steps of {config.batch_size} images, too "
            f"few for new layers: give at least {math.ceil(1000 * least) / 1000:g}, or smaller batches"
        )
    reset = config.reset or upper_layers(network, data.train.batch(torch.arange(2)), config.blocks)
    missing = [name for name in reset if name not in dict(network.named_modules())]
    if missing:
        raise ModelError(f"{type(network).__name__} has no layer {missing[0]!r} to draw anew: see named_modules()")
    own = replace(
        training,
        epochs=max(1, math.ceil(steps * config.batch_size / len(retained.train))),
        batch_size=config.batch_size,
        lr=config.lr,
        weight_decay=config.weight_decay,
        seed=config.seed,
    )
    return Erasing(tuple(reset), steps, own, retained, config.augmented, config.optimiser)


def erase(
    network: nn.Module,
    plan: Erasing,
    fresh: nn.Module,
    progress: Callable[[int, int, float], None] | None = None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> float:
    """Erase in place, and return the mean loss of the last pass over the retained images.

    The last state is kept: the learning rate has come down to zero there. No image of a forgotten class is looked at.

    Args:
        network: a baked network with its BatchNorms, or the base, on the device that the training runs on; left in
            eval mode.
        fresh: the same architecture with random weights, of which the reset layers take theirs.
        progress: called after each step with (step, steps, loss).
        checkpoint, resume: as `memmod.training.fit`.

    Raises:
        ModelError: a fresh network of another architecture.
        RunError: the loss is not finite (the network is left as it was at that step), or as `fit`.
    """
    draw_anew(network, fresh, plan.reset)
    network.requires_grad_(True)
    return fit(
        network,
        plan.retained,
        plan.training,
        progress,
        steps=plan.steps,
        augmented=plan.augmented,
        optimiser=plan.optimiser,
        checkpoint=checkpoint,
        resume=resume,
    )
