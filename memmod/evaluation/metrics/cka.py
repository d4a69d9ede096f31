"""Similarity of two networks' features."""

from __future__ import annotations

from torch import Tensor

from memmod.errors import DataError


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment, ‖Yᵀ X‖²_F / (‖Xᵀ X‖_F ‖Yᵀ Y‖_F) of centred features: 0 to 1.

    Kornblith et al., arXiv 1905.00414, with linear kernels. Invariant to rotations and to one scale of all features.

    Args:
        x: features ``[N, D]`` of one network.
        y: features ``[N, E]`` of another, of the same images.

    Raises:
        DataError: other numbers of images, fewer than 2, or features that are the same for all images.
    """
    if x.dim() != 2 or y.dim() != 2 or x.shape[0] != y.shape[0] or x.shape[0] < 2:
        raise DataError(
            f"features of shapes {tuple(x.shape)} and {tuple(y.shape)} cannot be compared: [N, D] and [N, E] of the "
            "same images are needed, at least 2"
        )
    x, y = (t.double() - t.double().mean(0) for t in (x, y))
    scale = (x.T @ x).norm() * (y.T @ y).norm()
    if not scale > 0:
        raise DataError("the features are the same for all images, so that their similarity has no meaning")
    return ((y.T @ x).square().sum() / scale).item()
