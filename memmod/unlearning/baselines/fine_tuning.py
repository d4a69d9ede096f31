"""Fine-tuning on the retained images: catastrophic forgetting is left to do the rest.

A. Golatkar, A. Achille, S. Soatto, "Eternal Sunshine of the Spotless Net: Selective Forgetting in Deep Networks", CVPR
2020, arXiv 1911.04933, the baseline "fine-tune": min CE(D_r). Settings of J. Jia et al., "Model Sparsity Can Simplify
Machine Unlearning", NeurIPS 2023, arXiv 2304.04934: SGD, lr 0.01, 10 epochs beside 182 of training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from memmod.unlearning.baselines.method import ForgetTask, Method
from memmod.unlearning.baselines.training_loop import Batches, GradientConfig, Steps

NAME = "fine-tuning"


@dataclass(frozen=True)
class FineTuningConfig(GradientConfig):
    """Settings of fine-tuning; see `GradientConfig`."""

    epochs: float = 10.0
    reference_epochs: int | None = 182
    lr: float = 0.01


def fine_tune(task: ForgetTask, config: FineTuningConfig) -> nn.Module:
    """Train on the retained images alone, BatchNorm's statistics following them.

    Raises:
        Diverged: the loss is not finite.
    """
    network = task.network.train()
    steps = Steps(task, config, NAME, config.steps(task, task.retain), network.parameters())
    batches = Batches(task, task.retain, torch.Generator().manual_seed(task.seed))
    for _ in range(steps.total):
        x, labels = next(batches)
        steps.take(F.cross_entropy(task.logits(network, x), labels))
    return network.eval()


METHOD = Method(
    name=NAME,
    paper="Golatkar, Achille, Soatto 2020, arXiv 1911.04933; settings of Jia et al. 2023, arXiv 2304.04934",
    config=FineTuningConfig,
    run=fine_tune,
    grid={"lr": (0.001, 0.01, 0.03, 0.1)},
)
