"""How far two networks' outputs are apart on the same images."""

from __future__ import annotations

from torch import Tensor

from memmod.evaluation.metrics.divergence import check_distributions


def mean_activation_distance(p: Tensor, q: Tensor) -> float:
    """Mean over images of ‖p - q‖₂, of final activations after softmax (Golatkar et al., arXiv 2012.13431): 0 to √2.

    Args:
        p: probabilities ``[N, C]`` of the unlearned network.
        q: alike, of a network retrained without the class.

    Raises:
        DataError: other shapes, or rows that do not sum to 1.
    """
    return _distances(p, q).mean().item()


def rms_activation_distance(p: Tensor, q: Tensor) -> float:
    """Root of the mean over images of ‖p - q‖₂²: at least the mean distance, and more where few images differ much.

    memmod's own, beside the mean of arXiv 2012.13431.

    Args:
        p: probabilities ``[N, C]`` of the unlearned network.
        q: alike, of a network retrained without the class.

    Raises:
        DataError: other shapes, or rows that do not sum to 1.
    """
    return _distances(p, q).square().mean().sqrt().item()


def _distances(p: Tensor, q: Tensor) -> Tensor:
    p, q = check_distributions(p, q)
    return (p - q).norm(dim=1)
