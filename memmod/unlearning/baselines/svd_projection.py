"""Gradient-free class forgetting: directions of the forgotten class are projected out of every layer's input.

S. Kodge, G. Saha, K. Roy, "Deep Unlearning: Fast and Efficient Gradient-free Class Forgetting", TMLR 2024, arXiv
2312.00761: with the singular vectors U and values σ of a layer's input activations and the importances
Λ_i = α·σ̂_i / ((α − 1)·σ̂_i + 1), σ̂_i = σ_i² / Σσ², the spaces of the retained and the forgotten images are
P_r = U_r Λ_r U_rᵀ and P_f = U_f Λ_f U_fᵀ; of the forgotten space what it shares with the retained one is kept
(P_dis = P_f − P_f P_r), and the weights become W (I − P_dis)ᵀ. Settings of the authors' code: α_r = 100,
α_f = 3, about 900 retained and 900 forgotten images; they search α_r in {10, …, 1000} and α_f in {1, …, 100}.

U and σ² are taken as the eigenvectors and eigenvalues of the activations' second moments, in fp64. Every position of a
convolution counts, where the authors draw 10,000 patches from one window of the images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memmod.data import Split, at_most
from memmod.unlearning.baselines.layer_inputs import grouped, layers_of, observe_inputs, weight_inputs
from memmod.unlearning.baselines.method import Diverged, ForgetTask, Method
from memmod.unlearning.baselines.training_loop import check_positive

NAME = "svd-projection"


@dataclass(frozen=True)
class SVDProjectionConfig:
    """Settings of the projection.

    Args:
        alpha_r: how readily a direction counts as one of the retained images.
        alpha_f: how readily as one of the forgotten images.
        images: retained and forgotten images whose activations are taken, about so many of each.

    Raises:
        RunError: a value that is not above 0.
    """

    alpha_r: float = 100.0
    alpha_f: float = 3.0
    images: int = 900

    def __post_init__(self) -> None:
        check_positive(self, "alpha_r", "alpha_f", "images")


def project(task: ForgetTask, config: SVDProjectionConfig) -> nn.Module:
    """Project the forgotten class's own directions out of the input of every linear and conv layer.

    Raises:
        Diverged: activations that are not finite.
    """
    network = task.network
    retain = second_moments(task, task.retain.subset(at_most(task.retain.labels, config.images, task.seed)))
    task.on_step(1, 3)
    forget = second_moments(task, task.forget.subset(at_most(task.forget.labels, config.images, task.seed)))
    task.on_step(2, 3)
    layers = layers_of(network)
    for name, moments in forget.items():
        own, kept = space(moments, config.alpha_f), space(retain[name], config.alpha_r)
        weight = grouped(layers[name])
        projected = weight.double() @ (torch.eye(weight.shape[-1], device=weight.device) - own + kept @ own)
        with torch.no_grad():
            layers[name].weight.copy_(projected.reshape(layers[name].weight.shape))
    task.on_step(3, 3)
    return network.eval()


def space(moments: Tensor, alpha: float) -> Tensor:
    """U Λ Uᵀ ``[groups, K, K]`` of second moments of the same shape: importances 0 to 1 along its eigenvectors."""
    values, vectors = torch.linalg.eigh(moments)
    ratio = values.clamp(min=0)
    ratio = ratio / ratio.sum(-1, keepdim=True).clamp(min=torch.finfo(ratio.dtype).tiny)
    importance = alpha * ratio / ((alpha - 1) * ratio + 1)
    return (vectors * importance.unsqueeze(-2)) @ vectors.mT


def second_moments(task: ForgetTask, split: Split) -> dict[str, Tensor]:
    """By layer, fp64 ``[groups, K, K]``: the sum of the outer products of what its weight rows are multiplied with.

    Raises:
        Diverged: an activation is not finite.
    """
    layers, total = layers_of(task.network), {}

    def see(name: str, x: Tensor, _labels: Tensor) -> None:
        inputs = weight_inputs(layers[name], x)
        product = (inputs.mT @ inputs).double()
        total[name] = total[name] + product if name in total else product

    observe_inputs(task, split, see)
    for name, moments in total.items():
        if not moments.isfinite().all():
            raise Diverged(f"{NAME}: what goes into {name} is not finite; check the network's weights")
    return total


METHOD = Method(
    name=NAME,
    paper="Kodge, Saha, Roy 2024, TMLR, arXiv 2312.00761",
    config=SVDProjectionConfig,
    run=project,
    grid={"alpha_r": (10.0, 30.0, 100.0), "alpha_f": (3.0, 30.0)},
)
