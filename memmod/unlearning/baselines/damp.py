"""DAMP: forget-specific directions are removed in closed form from what every layer listens to, more so in deep layers.

A. Hatami, R. Aalishah, I. E. Monosov, "Class Unlearning via Depth-Aware Removal of Forget-Specific Directions", 2026,
arXiv 2604.15166.

From the abstract: one shot, closed form, no gradient. At each stage class prototypes are computed in the input space of
the next learnable operator; forget directions are the residuals relative to the retained classes' prototypes; a
projection reduces the weights' sensitivity to them; a scale without parameters, from the separability of probes, makes
edits smaller in early layers and larger in deep ones; several classes give a low-rank subspace.

Our reading, where the abstract leaves it open (the paper's equations were not at hand): every linear and conv layer is
an operator, the head included. A prototype is the mean over images and positions of the input's channels or features.
The residual is what is left of a forgotten class's prototype after its least-squares projection onto the span of the
retained ones, so that these pass every edited layer unchanged; the columns of D are an orthonormal basis of the
residuals. The update is W (I − s·D Dᵀ), at every position of a kernel. The separability is s = max(0, 2·b − 1), b the
balanced accuracy with which the nearest class prototype tells forgotten from retained images at that layer. All layers
are measured on the original network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memmod.data import Split, at_most
from memmod.unlearning.baselines.layer_inputs import Layer, layers_of, observe_inputs
from memmod.unlearning.baselines.method import Diverged, ForgetTask, Method
from memmod.unlearning.baselines.training_loop import check_positive

NAME = "damp"
# A residual this much smaller than its prototype is rounding.
NEGLIGIBLE = 1e-4


@dataclass(frozen=True)
class DampConfig:
    """Settings of DAMP, which has none in the paper.

    Args:
        images: images that prototypes are taken of, retained and forgotten, about so many of each.

    Raises:
        RunError: a value that is not above 0.
    """

    images: int = 2_000

    def __post_init__(self) -> None:
        check_positive(self, "images")


def damp(task: ForgetTask, config: DampConfig) -> nn.Module:
    """Remove the forgotten classes' own directions from the input of every linear and conv layer.

    Raises:
        Diverged: activations that are not finite.
    """
    forgotten = task.is_forgotten().to(task.device)
    features, labels = _inputs(task, config)
    layers = layers_of(task.network)
    for name, x in features.items():
        if not x.isfinite().all():
            raise Diverged(f"{NAME}: what goes into {name} is not finite; check the network's weights")
        means = prototypes(x, labels, task.num_classes)
        directions = forget_directions(means[forgotten], means[~forgotten])
        remove(layers[name], directions, separability(x, labels, means, forgotten))
    task.on_step(1, 1)
    return task.network.eval()


def _inputs(task: ForgetTask, config: DampConfig) -> tuple[dict[str, Tensor], Tensor]:
    """(by layer, fp64 ``[N, I]`` inputs averaged over positions, labels ``[N]``) of some of both kinds of images."""
    seen: dict[str, list[Tensor]] = {}
    layers = layers_of(task.network)

    def see(name: str, x: Tensor, _labels: Tensor) -> None:
        positions = x.flatten(2).mT if isinstance(layers[name], nn.Conv2d) else x.reshape(len(x), -1, x.shape[-1])
        seen.setdefault(name, []).append(positions.double().mean(1))

    labels = []
    for split in (task.retain, task.forget):
        part: Split = split.subset(at_most(split.labels, config.images, task.seed))
        observe_inputs(task, part, see)
        labels.append(part.labels)
    counts = len(torch.cat(labels))
    # layers that see other rows than the images', such as windows, have no prototypes of images
    features = {name: torch.cat(parts) for name, parts in seen.items()}
    return {name: x for name, x in features.items() if len(x) == counts}, torch.cat(labels).to(task.device)


def prototypes(x: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Class means ``[C, I]`` of features ``[N, I]``; 0 for a class without images."""
    sums = torch.zeros(num_classes, x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, labels, x)
    return sums / torch.bincount(labels, minlength=num_classes).clamp(min=1).unsqueeze(1)


def forget_directions(forgotten: Tensor, retained: Tensor) -> Tensor:
    """Orthonormal ``[k, I]``: what the span of prototypes ``[f, I]`` has beyond that of ``[r, I]``; 0 ≤ k ≤ f."""
    kept = _basis(retained, retained.norm(dim=1).max())
    return _basis(forgotten - forgotten @ kept.mT @ kept, forgotten.norm(dim=1).max())


def _basis(vectors: Tensor, scale: Tensor) -> Tensor:
    _, values, right = torch.linalg.svd(vectors, full_matrices=False)
    return right[values > NEGLIGIBLE * scale]


def separability(x: Tensor, labels: Tensor, means: Tensor, forgotten: Tensor) -> float:
    """max(0, 2·b − 1), b the balanced accuracy of forgotten against retained by the nearest of the prototypes."""
    own = forgotten[labels]
    told = forgotten[torch.cdist(x, means).argmin(1)]
    balanced = (told[own].double().mean() + (~told[~own]).double().mean()) / 2
    return max(0.0, 2 * balanced.item() - 1)


@torch.no_grad()
def remove(layer: Layer, directions: Tensor, strength: float) -> None:
    """W (I − s·D Dᵀ) over a layer's input channels, D's columns the directions ``[k, I]``; groups see theirs."""
    weight = layer.weight.double()
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    own = directions.unflatten(1, (groups, -1)).transpose(0, 1)
    rows = weight.flatten(2) if weight.dim() > 2 else weight.unsqueeze(2)
    rows = rows.unflatten(0, (groups, -1))
    along = torch.einsum("goik,gdi->godk", rows, own)
    rows = rows - strength * torch.einsum("godk,gdi->goik", along, own)
    layer.weight.copy_(rows.flatten(0, 1).reshape(layer.weight.shape))


METHOD = Method(
    name=NAME,
    paper="Hatami, Aalishah, Monosov 2026, arXiv 2604.15166 (from its abstract)",
    config=DampConfig,
    run=damp,
)
