"""Selective Synaptic Dampening: weights that matter more to the forgotten images than to all images are made smaller.

J. Foster, S. Schoepf, A. Brintrup, "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening",
AAAI 2024, arXiv 2308.07707: where I_f > α·I_D, θ becomes β·θ with β = min(λ·I_D / I_f, 1), I the
diagonal of the Fisher information over the forgotten images and over all. No gradient step is taken. α = 10, λ = 1 in
the authors' code for whole classes.

As in the authors' code an importance is the mean over batches of 64 of the squared gradient of a batch, and a batch
holds images of one class: of mixed ones the classes' gradients would cancel in I_D alone, and α would mean something
else. About `images` images are taken in all, of each class its share, instead of every one.

I_D holds the forgotten images too, so that I_f / I_D is at most the inverse of their share. The paper's sets have 20
classes and more; of 10 even classes one is a share of .1, and α = 10 selects no weight: a smaller α has to be tuned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memmod.data import Split, at_most, batches_of
from memmod.unlearning.baselines.method import ForgetTask, Method
from memmod.unlearning.baselines.training_loop import check_positive

NAME = "ssd"
BATCH = 64


@dataclass(frozen=True)
class SSDConfig:
    """Settings of Selective Synaptic Dampening.

    Args:
        alpha: by how much a weight must matter more to the forgotten images to be dampened.
        lam: λ, how strongly it is dampened.
        images: about how many images the importances are measured on, of each class its share.

    Raises:
        RunError: a value that is not above 0.
    """

    alpha: float = 10.0
    lam: float = 1.0
    images: int = 10_000

    def __post_init__(self) -> None:
        check_positive(self, "alpha", "lam", "images")


def dampen(task: ForgetTask, config: SSDConfig) -> nn.Module:
    """Measure both importances and dampen once."""
    network = task.network.eval()
    share = min(1.0, config.images / (len(task.retain) + len(task.forget)))
    parts = [split.subset(_some(split, share, task.seed)) for split in (task.forget, task.retain)]
    total = sum(len(_pure_batches(part)) for part in parts)
    forget, batches = squared_gradients(task, parts[0], 0, total)
    retain, more = squared_gradients(task, parts[1], batches, total)
    with torch.no_grad():
        for parameter, own, other in zip(network.parameters(), forget, retain, strict=True):
            everything = (own + other) / (batches + more)
            parameter.mul_(dampening(everything, own / batches, config.alpha, config.lam))
    return network


def dampening(everything: Tensor, forget: Tensor, alpha: float, lam: float) -> Tensor:
    """What to multiply weights by, from their importance to all images and to the forgotten ones, of equal shapes."""
    factor = (lam * everything / forget).clamp(max=1.0)
    return torch.where(forget > alpha * everything, factor, 1.0)


def squared_gradients(task: ForgetTask, split: Split, done: int, total: int) -> tuple[Sequence[Tensor], int]:
    """(by parameter, the sum over batches of one class of the squared gradient of cross-entropy, number of batches)."""
    parameters = list(task.network.parameters())
    sums = [torch.zeros_like(p) for p in parameters]
    parts = _pure_batches(split)
    for number, part in enumerate(parts):
        x, labels = split.batch(part).to(task.device), split.labels[part].to(task.device)
        loss = F.cross_entropy(task.logits(task.network, x), labels)
        for total_, gradient in zip(sums, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            if gradient is not None:
                total_ += gradient.square()
        task.on_step(done + number + 1, total)
    return sums, len(parts)


def _pure_batches(split: Split) -> list[Tensor]:
    by_class = [(split.labels == c).nonzero().flatten() for c in split.labels.unique()]
    return [part for members in by_class for part in batches_of(members, BATCH)]


def _some(split: Split, share: float, seed: int) -> Tensor:
    return at_most(split.labels, max(1, round(share * len(split))), seed)


METHOD = Method(
    name=NAME,
    paper="Foster, Schoepf, Brintrup 2024, AAAI, arXiv 2308.07707",
    config=SSDConfig,
    run=dampen,
    grid={"alpha": (1.0, 4.0, 7.0), "lam": (0.1, 1.0)},
)
