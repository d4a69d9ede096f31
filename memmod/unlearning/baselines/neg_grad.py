"""Gradient ascent on the forgotten images, alone and beside descent on the retained ones.

NegGrad: A. Golatkar, A. Achille, S. Soatto, "Eternal Sunshine of the Spotless Net", CVPR 2020, arXiv 1911.04933, and
A. Thudi et al., "Unrolling SGD: Understanding Factors Influencing Machine Unlearning", EuroS&P 2022, arXiv 2109.13398:
max CE(D_f). Settings of J. Jia et al. 2023, arXiv 2304.04934: lr 1e-4, 5 epochs of the forgotten images.

NegGrad+: M. Kurmanji, P. Triantafillou, J. Hayes, E. Triantafillou, "Towards Unbounded Machine Unlearning", NeurIPS
2023, arXiv 2302.09880: min α·CE(D_r) − (1 − α)·CE(D_f). The paper tunes α for each problem; 0.999 is our
choice of a default.

Cross-entropy has no upper bound, so ascent has nowhere to end. Two things differ from the papers: the norm of the
gradient is clipped at 1, so that a step is never longer than the learning rate says, and BatchNorm's running
statistics normalise all images and stay as they are (`train_with_fixed_statistics`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memmod.unlearning.baselines.method import ForgetTask, Method
from memmod.unlearning.baselines.training_loop import (
    Batches,
    GradientConfig,
    Steps,
    check_range,
    train_with_fixed_statistics,
)

NAME = "neg-grad"
NAME_PLUS = "neg-grad-plus"


@dataclass(frozen=True)
class NegGradConfig(GradientConfig):
    """Settings of NegGrad: passes over the forgotten images; see `GradientConfig`."""

    epochs: float = 5.0
    lr: float = 1e-4
    clip: float | None = 1.0


@dataclass(frozen=True)
class NegGradPlusConfig(GradientConfig):
    """Settings of NegGrad+: passes over the retained images; see `GradientConfig`.

    Args:
        alpha: weight of the retained images, against 1 − alpha of the forgotten.
    """

    epochs: float = 10.0
    reference_epochs: int | None = 182
    lr: float = 0.01
    weight_decay: float = 0.0
    clip: float | None = 1.0
    alpha: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "alpha", 0, 1)


def negative_gradient(task: ForgetTask, config: NegGradConfig) -> nn.Module:
    """Ascend the cross-entropy of the forgotten images; no retained image is seen.

    Raises:
        Diverged: the loss is not finite.
    """
    network = train_with_fixed_statistics(task.network)
    steps = Steps(task, config, NAME, config.steps(task, task.forget), network.parameters())
    batches = Batches(task, task.forget, torch.Generator().manual_seed(task.seed))
    for _ in range(steps.total):
        x, labels = next(batches)
        steps.take(-F.cross_entropy(task.logits(network, x), labels))
    return network.eval()


def negative_gradient_plus(task: ForgetTask, config: NegGradPlusConfig) -> nn.Module:
    """Descend on the retained images and ascend on the forgotten in the same step.

    Raises:
        Diverged: the loss is not finite.
    """
    network = train_with_fixed_statistics(task.network)
    steps = Steps(task, config, NAME_PLUS, config.steps(task, task.retain), network.parameters())
    generator = torch.Generator().manual_seed(task.seed)
    retain, forget = Batches(task, task.retain, generator), Batches(task, task.forget, generator)
    for _ in range(steps.total):
        x, labels = next(retain)
        kept = F.cross_entropy(task.logits(network, x), labels)
        x, labels = next(forget)
        forgotten = F.cross_entropy(task.logits(network, x), labels)
        steps.take(weighed(kept, forgotten, config.alpha))
    return network.eval()


def weighed(retain: Tensor, forget: Tensor, alpha: float) -> Tensor:
    """α·retain − (1 − α)·forget of two scalar losses."""
    return alpha * retain - (1 - alpha) * forget


METHOD = Method(
    name=NAME,
    paper="Golatkar, Achille, Soatto 2020, arXiv 1911.04933; Thudi et al. 2022, arXiv 2109.13398",
    config=NegGradConfig,
    run=negative_gradient,
    grid={"lr": (1e-5, 3e-5, 1e-4, 1e-3, 3e-3, 1e-2)},
    uses_retained=False,
)
METHOD_PLUS = Method(
    name=NAME_PLUS,
    paper="Kurmanji, Triantafillou, Hayes, Triantafillou 2023, arXiv 2302.09880",
    config=NegGradPlusConfig,
    run=negative_gradient_plus,
    grid={"alpha": (0.9, 0.99, 0.999), "lr": (0.003, 0.01)},
)
