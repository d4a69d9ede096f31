"""SCRUB: a student that disobeys its teacher on the forgotten images, and obeys it on the retained ones.

M. Kurmanji, P. Triantafillou, J. Hayes, E. Triantafillou, "Towards Unbounded Machine Unlearning", NeurIPS 2023, arXiv
2302.09880: min α·KL(teacher ‖ student; D_r) + γ·CE(D_r) − KL(teacher ‖ student; D_f), by
alternation: an epoch of max steps on the forgotten images, then one of min steps on the retained, and in the end
min steps only. Settings of the authors' code: α = 0.001, γ = 0.99, temperature 4, SGD with lr 5e-4, 3 epochs of which 2
begin with max steps; they are scaled as beside 30 epochs of training, which is our reading. Their β weighs a second
distillation term, 0 in their settings, and is left out.

The KL of the max steps has no upper bound: the norm of the gradient is clipped at 1, where the authors' code has a
clipping it does not apply. BatchNorm's running statistics normalise all images and stay as they are
(`train_with_fixed_statistics`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memmod.errors import RunError
from memmod.surgery.base_copy import detached_copy
from memmod.unlearning.baselines.method import ForgetTask, Method
from memmod.unlearning.baselines.training_loop import (
    Batches,
    GradientConfig,
    Steps,
    check_positive,
    check_range,
    train_with_fixed_statistics,
)

NAME = "scrub"


@dataclass(frozen=True)
class ScrubConfig(GradientConfig):
    """Settings of SCRUB; see `GradientConfig`.

    Args:
        epochs: whole rounds; a round passes over the images `reference_epochs` scales it to.
        msteps: rounds, the first ones, that begin with max steps.
        alpha: weight of the KL to the teacher on retained images.
        gamma: weight of their cross-entropy.
        temperature: of both KL terms.
    """

    epochs: float = 3
    reference_epochs: int | None = 30
    lr: float = 5e-4
    clip: float | None = 1.0
    msteps: int = 2
    alpha: float = 0.001
    gamma: float = 0.99
    temperature: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "temperature")
        for name in ("alpha", "gamma"):
            check_range(self, name, 0, math.inf)
        if self.epochs != int(self.epochs):
            raise RunError(f"epochs is {self.epochs}; SCRUB alternates whole rounds: give a whole number")
        if not 0 <= self.msteps <= self.epochs or self.msteps != int(self.msteps):
            raise RunError(f"msteps is {self.msteps}; it must be a whole number of the {self.epochs} rounds")


def scrub(task: ForgetTask, config: ScrubConfig) -> nn.Module:
    """Alternate max steps on forgotten and min steps on retained images.

    Raises:
        Diverged: a loss is not finite.
    """
    teacher = detached_copy(task.network).eval().requires_grad_(False)
    network = train_with_fixed_statistics(task.network)
    generator = torch.Generator().manual_seed(task.seed)
    forget, retain = Batches(task, task.forget, generator), Batches(task, task.retain, generator)
    order = list(alternation(config, config.steps(task, task.forget), config.steps(task, task.retain)))
    steps = Steps(task, config, NAME, len(order), network.parameters())
    for is_max in order:
        x, labels = next(forget if is_max else retain)
        with torch.no_grad():
            target = task.logits(teacher, x)
        if is_max:
            steps.take(-divergence(task.logits(network, x), target, config.temperature))
        else:
            logits = task.logits(network, x)
            distilled = divergence(logits, target, config.temperature)
            steps.take(config.alpha * distilled + config.gamma * F.cross_entropy(logits, labels))
    return network.eval()


def alternation(config: ScrubConfig, forget_steps: int, retain_steps: int) -> Iterator[bool]:
    """For each step whether it is a max step: the rounds share `forget_steps` and `retain_steps` batches evenly."""
    rounds = int(config.epochs)
    for number in range(rounds):
        if number < config.msteps:
            yield from [True] * math.ceil(forget_steps / rounds)
        yield from [False] * math.ceil(retain_steps / rounds)


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(teacher ‖ student) of logits ``[B, C]`` at temperature T, mean over the batch."""
    target = (teacher / temperature).log_softmax(1)
    own = (student / temperature).log_softmax(1)
    return F.kl_div(own, target, reduction="batchmean", log_target=True) * temperature**2


METHOD = Method(
    name=NAME,
    paper="Kurmanji, Triantafillou, Hayes, Triantafillou 2023, NeurIPS, arXiv 2302.09880",
    config=ScrubConfig,
    run=scrub,
    grid={"lr": (5e-4, 5e-3, 2e-2), "msteps": (2, 3)},
)
