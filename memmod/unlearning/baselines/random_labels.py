"""Random labels: the forgotten images are trained on with wrong labels, the retained ones with their own.

A. Golatkar, A. Achille, S. Soatto, "Eternal Sunshine of the Spotless Net", CVPR 2020, arXiv 1911.04933 ("random
labels"), and L. Graves, V. Nagisetty, V. Ganesh, "Amnesiac Machine Learning", AAAI 2021, arXiv 2010.10981
("unlearning"): min CE(D_f with random incorrect labels) + CE(D_r). Settings of the RL baseline of C. Fan et al., ICLR
2024, arXiv 2310.12508: SGD, 10 epochs beside 182 of training.

Each forgotten image gets one label, drawn once and uniformly from the classes that stay: with several classes to forget
none is renamed to another of them. A batch is of forgotten or of retained images, the two kinds evenly mixed;
BatchNorm's running statistics normalise both and stay as they are (`train_with_fixed_statistics`): batches of one class
in training mode ruin the accuracy on the retained images. The norm of the gradient is clipped at 1: on wrong
labels a trained network's first losses lie far above any of its training, and one such step undid it (digits, lr 0.03:
accuracy on retained images .15 without, .91 with clipping).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memmod.unlearning.baselines.method import ForgetTask, Method
from memmod.unlearning.baselines.training_loop import (
    Batches,
    GradientConfig,
    Steps,
    spread,
    train_with_fixed_statistics,
)

NAME = "random-labels"


@dataclass(frozen=True)
class RandomLabelsConfig(GradientConfig):
    """Settings of random labels: passes over all images; see `GradientConfig`."""

    epochs: float = 10.0
    reference_epochs: int | None = 182
    lr: float = 0.01
    clip: float | None = 1.0


def random_labels(task: ForgetTask, config: RandomLabelsConfig) -> nn.Module:
    """Train on wrongly labelled forgotten images among the retained ones.

    Raises:
        Diverged: the loss is not finite.
    """
    return relearn(task, config, NAME)


def relearn(
    task: ForgetTask,
    config: GradientConfig,
    method: str,
    after_step: Callable[[], None] = lambda: None,
) -> nn.Module:
    """Training with random labels for the forgotten images.

    Args:
        method: named where the loss diverges.
        after_step: called after every step of the optimiser.

    Raises:
        Diverged: the loss is not finite.
    """
    generator = torch.Generator().manual_seed(task.seed)
    wrong = wrong_labels(len(task.forget), task.is_forgotten(), generator)
    forget, retain = Batches(task, task.forget, generator, wrong), Batches(task, task.retain, generator)
    order = spread(config.steps(task, task.forget), config.steps(task, task.retain))
    network = train_with_fixed_statistics(task.network)
    steps = Steps(task, config, method, len(order), network.parameters())
    for is_forget in order:
        x, labels = next(forget if is_forget else retain)
        steps.take(F.cross_entropy(task.logits(network, x), labels))
        after_step()
    return network.eval()


def wrong_labels(count: int, forgotten: Tensor, generator: torch.Generator) -> Tensor:
    """int64 ``[count]``, drawn uniformly from the classes that are not in forgotten, bool ``[C]``."""
    kept = (~forgotten).nonzero().flatten()
    return kept[torch.randint(len(kept), (count,), generator=generator)]


METHOD = Method(
    name=NAME,
    paper="Golatkar, Achille, Soatto 2020, arXiv 1911.04933; Graves, Nagisetty, Ganesh 2021, arXiv 2010.10981",
    config=RandomLabelsConfig,
    run=random_labels,
    grid={"lr": (0.003, 0.01, 0.03, 0.1)},
)
