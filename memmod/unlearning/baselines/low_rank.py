"""A low-rank update of the weights for each class, trained on its images alone.

S. Poppi, S. Sarto, M. Cornia, L. Baraldi, R. Cucchiara, "Unlearning Vision Transformers without Retaining Data via
Low-Rank Decompositions", ICPR 2024, doi 10.1007/978-3-031-78122-3_10.

From the abstract: a trainable low-rank decomposition is injected into a pretrained network's parameters and trained to
delete a class, without the original training set, so that few parameters are trained and kept.

Our reading, where the abstract leaves it open (the paper's equations were not at hand): every linear and conv layer's
weight becomes W + B·A, A ``[r, K]`` drawn as for LoRA (arXiv 2106.09685) and B ``[O, r]`` zero at first. The loss is
the KL to the base's own softmax on the forgotten images with the forgotten classes at −∞: it forgets, and holds the
order of the other classes, the only trace of them in these images; and μ times the mean over layers of
‖B·A‖² / ‖W‖², which keeps the network near the base where no image says anything. BatchNorm's running statistics stay
as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from memmod.errors import RunError
from memmod.outputs import logits_of
from memmod.unlearning.baselines.layer_inputs import Layer, layers_of
from memmod.unlearning.baselines.method import ForgetTask, Method
from memmod.unlearning.baselines.training_loop import Batches, GradientConfig, Steps, check_range

NAME = "low-rank"


@dataclass(frozen=True)
class LowRankConfig(GradientConfig):
    """Settings of the low-rank update: passes over the forgotten images; see `GradientConfig`.

    Args:
        rank: r of every layer's update.
        mu: weight of its relative size.
    """

    epochs: float = 3.0
    lr: float = 3e-3
    weight_decay: float = 0.0
    clip: float | None = 1.0
    optimiser: str = "adam"
    rank: int = 4
    mu: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "mu", 0, math.inf)
        if self.rank != int(self.rank) or self.rank < 1:
            raise RunError(f"rank is {self.rank}; it must be a whole number of at least 1")


def low_rank(task: ForgetTask, config: LowRankConfig) -> nn.Module:
    """Train the updates, and add them to the weights.

    Raises:
        Diverged: the loss is not finite.
    """
    network = task.network.eval()
    generator = torch.Generator().manual_seed(task.seed)
    layers = layers_of(network)
    factors = {name: factors_of(layer, config.rank, generator) for name, layer in layers.items()}
    trained = [factor.requires_grad_(True) for pair in factors.values() for factor in pair]
    steps = Steps(task, config, NAME, config.steps(task, task.forget), trained)
    images = Batches(task, task.forget, generator)
    forgotten = task.is_forgotten().to(task.device)
    for _ in range(steps.total):
        x, _ = next(images)
        with torch.no_grad():
            target = task.logits(network, x).masked_fill(forgotten, -math.inf).softmax(1)
        updates = {name: (b @ a).view(layers[name].weight.shape) for name, (a, b) in factors.items()}
        weights = {f"{name}.weight": layers[name].weight.detach() + update for name, update in updates.items()}
        logits = logits_of(functional_call(network, weights, (x,)), task.logits_path)
        forgetting = F.kl_div(logits.log_softmax(1), target, reduction="batchmean")
        steps.take(forgetting + config.mu * relative_size(updates, layers))
    with torch.no_grad():
        for name, (a, b) in factors.items():
            layers[name].weight += (b @ a).view(layers[name].weight.shape)
    return network


def factors_of(layer: Layer, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(A ``[r, K]`` drawn, B ``[O, r]`` zero) for a layer's weight, seen as a matrix ``[O, K]``."""
    weight = layer.weight.flatten(1)
    a = torch.randn(rank, weight.shape[1], generator=generator) / math.sqrt(weight.shape[1])
    return a.to(weight), torch.zeros(weight.shape[0], rank).to(weight)


def relative_size(updates: dict[str, Tensor], layers: dict[str, Layer]) -> Tensor:
    """The mean over layers of the update's squared norm over the weight's."""
    sizes = [
        update.square().sum() / layers[name].weight.detach().square().sum().clamp(min=1e-12)
        for name, update in updates.items()
    ]
    return torch.stack(sizes).mean()


def factor_bytes(_task: ForgetTask, config: LowRankConfig, network: nn.Module) -> int:
    """Bytes of all layers' factors."""
    weights = [layer.weight for layer in layers_of(network).values()]
    return sum(config.rank * (w.shape[0] + w[0].numel()) * w.element_size() for w in weights)


METHOD = Method(
    name=NAME,
    paper="Poppi, Sarto, Cornia, Baraldi, Cucchiara 2024, ICPR (from its abstract)",
    config=LowRankConfig,
    run=low_rank,
    grid={"lr": (1e-3, 3e-3, 1e-2), "rank": (4, 16)},
    uses_retained=False,
    stored=factor_bytes,
)
