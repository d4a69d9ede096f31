"""Boundary Shrink: each forgotten image is trained towards the class on the other side of its nearest boundary.

M. Chen, W. Gao, G. Liu, K. Peng, C. Wang, "Boundary Unlearning: Rapid Forgetting of Deep Networks via Shifting the
Decision Boundary", CVPR 2023, arXiv 2303.11570: x' = x + ε·sign(∇_x CE(x, y; w_0)), y' = argmax f(x'; w_0);
min CE(D_f with y'). Settings of the authors' code: ε = 0.1 of the pixels' range, SGD, lr 1e-5, momentum
0.9, 10 epochs of the forgotten images. Only forgotten images are trained on.

Where x' has not crossed the boundary the authors keep the old label; here y' is the most likely class that stays, so
that it is an incorrect one, as the paper's text has it, and of several forgotten classes none is renamed to another.
The pixels' range is that of the forgotten images at hand. BatchNorm's running statistics normalise the forgotten images
and stay as they are (`train_with_fixed_statistics`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memmod.evaluation.accuracy import batches
from memmod.unlearning.baselines.method import ForgetTask, Method
from memmod.unlearning.baselines.training_loop import (
    Batches,
    GradientConfig,
    Steps,
    check_positive,
    train_with_fixed_statistics,
)

NAME = "boundary-shrink"


@dataclass(frozen=True)
class BoundaryShrinkConfig(GradientConfig):
    """Settings of Boundary Shrink: passes over the forgotten images; see `GradientConfig`.

    Args:
        bound: ε, how far a pixel is moved, as a share of the pixels' range.
    """

    epochs: float = 10.0
    lr: float = 1e-5
    weight_decay: float = 0.0
    bound: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "bound")


def boundary_shrink(task: ForgetTask, config: BoundaryShrinkConfig) -> nn.Module:
    """Find each forgotten image's nearest class that stays, and train it into that class.

    Raises:
        Diverged: the loss is not finite.
    """
    labels = nearest_labels(task, config.bound)
    network = train_with_fixed_statistics(task.network)
    steps = Steps(task, config, NAME, config.steps(task, task.forget), network.parameters())
    images = Batches(task, task.forget, torch.Generator().manual_seed(task.seed), labels)
    for _ in range(steps.total):
        x, nearest = next(images)
        steps.take(F.cross_entropy(task.logits(network, x), nearest))
    return network.eval()


def nearest_labels(task: ForgetTask, bound: float) -> Tensor:
    """int64 ``[N]``: of each forgotten image, the class that stays and that one FGSM step brings it closest to."""
    network, forgotten = task.network.eval(), task.is_forgotten().to(task.device)
    low, high = _range(task)
    found = []
    for x, labels in batches(task.forget, task.training.batch_size, task.device):
        x.requires_grad_(True)
        loss = F.cross_entropy(task.logits(network, x), labels.to(task.device), reduction="sum")
        moved = x.detach() + bound * (high - low) * torch.autograd.grad(loss, x)[0].sign()
        with torch.no_grad():
            logits = task.logits(network, moved.clamp(low, high))
        found.append(logits.masked_fill(forgotten, -math.inf).argmax(1).cpu())
    return torch.cat(found)


def _range(task: ForgetTask) -> tuple[float, float]:
    extremes = [(x.min().item(), x.max().item()) for x, _ in batches(task.forget, task.training.batch_size, "cpu")]
    return min(low for low, _ in extremes), max(high for _, high in extremes)


METHOD = Method(
    name=NAME,
    paper="Chen, Gao, Liu, Peng, Wang 2023, CVPR, arXiv 2303.11570",
    config=BoundaryShrinkConfig,
    run=boundary_shrink,
    grid={"lr": (1e-5, 1e-4, 1e-3), "epochs": (3.0, 10.0)},
    uses_retained=False,
)
