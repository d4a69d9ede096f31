"""SalUn: random labels, trained into the weights whose gradient on the forgotten images is largest.

C. Fan, J. Liu, Y. Zhang, E. Wong, D. Wei, S. Liu, "SalUn: Empowering Machine Unlearning via Gradient-Based Weight
Saliency in Both Image Classification and Generation", ICLR 2024, arXiv 2310.12508. The mask is
m = 1(|∇_θ CE(D_f; θ_o)| ≥ γ), γ the median over all weights; θ = m ⊙ (θ_o + Δθ) + (1 − m) ⊙ θ_o; Δθ is trained with
random labels on D_f and the true ones on D_r. Settings of the authors' code: half of the weights, SGD, lr 0.013, 10
epochs beside 182 of training.

Labels, BatchNorm's statistics and the clipped gradient are as in `random_labels`: the authors train forgotten batches
in BatchNorm's training mode, which ruins the accuracy on the retained images where a batch holds one class, and do not
clip.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memmod.errors import RunError
from memmod.evaluation.accuracy import batches
from memmod.unlearning.baselines.method import ForgetTask, Method
from memmod.unlearning.baselines.random_labels import relearn
from memmod.unlearning.baselines.training_loop import GradientConfig

NAME = "salun"


@dataclass(frozen=True)
class SalUnConfig(GradientConfig):
    """Settings of SalUn: passes over all images; see `GradientConfig`.

    Args:
        share: of all weights, how many are trained.
    """

    epochs: float = 10.0
    reference_epochs: int | None = 182
    lr: float = 0.013
    clip: float | None = 1.0
    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise RunError(f"share is {self.share}; it must be above 0 and at most 1")


def salun(task: ForgetTask, config: SalUnConfig) -> nn.Module:
    """Random labels on the salient weights; all others end as they began, bit by bit.

    Raises:
        Diverged: the loss is not finite.
    """
    network = task.network
    masks = salient(forget_gradients(task), config.share)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}

    @torch.no_grad()
    def restore() -> None:
        for name, parameter in network.named_parameters():
            parameter.copy_(torch.where(masks[name], parameter, before[name]))

    return relearn(task, config, NAME, after_step=restore)


def forget_gradients(task: ForgetTask) -> dict[str, Tensor]:
    """By parameter, the gradient of the summed cross-entropy of the forgotten images, in eval mode."""
    network = task.network.eval()
    total = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for x, labels in batches(task.forget, task.training.batch_size, task.device):
        loss = F.cross_entropy(task.logits(network, x), labels.to(task.device), reduction="sum")
        gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        for name, gradient in zip(total, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient
    return total


def salient(gradients: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """By name, bool masks of the `share` of all entries whose magnitude is largest over all tensors."""
    magnitudes = torch.cat([gradient.abs().flatten() for gradient in gradients.values()])
    chosen = torch.zeros_like(magnitudes, dtype=torch.bool)
    chosen[magnitudes.topk(max(1, round(share * len(magnitudes)))).indices] = True
    parts = chosen.split([gradient.numel() for gradient in gradients.values()])
    return {name: part.view(gradients[name].shape) for name, part in zip(gradients, parts, strict=True)}


METHOD = Method(
    name=NAME,
    paper="Fan, Liu, Zhang, Wong, Wei, Liu 2024, ICLR, arXiv 2310.12508",
    config=SalUnConfig,
    run=salun,
    grid={"lr": (0.005, 0.013, 0.05), "share": (0.3, 0.5)},
)
