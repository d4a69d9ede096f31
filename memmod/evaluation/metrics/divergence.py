"""Distances between predicted distributions."""

from __future__ import annotations

import torch
from torch import Tensor

from memmod.errors import DataError


def check_distributions(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Both as fp64, where they are distributions ``[N, C]`` over the same classes for as many images.

    Raises:
        DataError: other shapes, no image, or rows that do not sum to 1.
    """
    for name, value in (("p", p), ("q", q)):
        if value.dim() != 2 or value.shape[0] == 0:
            raise DataError(
                f"{name} has shape {tuple(value.shape)}; it must be probabilities [N, C] of at least 1 image"
            )
        if not bool(torch.isclose(value.double().sum(1), torch.ones((), dtype=torch.float64), atol=1e-3).all()):
            raise DataError(f"the rows of {name} do not sum to 1: pass probabilities, such as logits.softmax(1)")
    if p.shape != q.shape:
        raise DataError(f"p has shape {tuple(p.shape)} and q {tuple(q.shape)}: compare the same images and classes")
    return p.double(), q.double()


def js_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of each pair of rows, in nats ``[N]``: 0 to ln 2.

    JS(p, q) = ½ KL(p ‖ m) + ½ KL(q ‖ m), m = ½ (p + q) (Lin, Divergence measures based on the Shannon entropy, 1991).

    Args:
        p: probabilities ``[N, C]``.
        q: alike.

    Raises:
        DataError: other shapes, or rows that do not sum to 1.
    """
    p, q = check_distributions(p, q)
    m = (p + q) / 2
    # rounding may leave -1e-17 for equal rows
    return ((_kl(p, m) + _kl(q, m)) / 2).clamp_min(0)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(1)


def total_variation(p: Tensor, q: Tensor) -> float:
    """Total variation between the mean predicted distributions, ½ Σ_c |mean p_c - mean q_c|: 0 to 1.

    The distance is that of Levin and Peres, Markov Chains and Mixing Times, 2017.

    Args:
        p: probabilities ``[N, C]`` of one network.
        q: alike, of another, on the same images.

    Raises:
        DataError: other shapes, or rows that do not sum to 1.
    """
    p, q = check_distributions(p, q)
    return ((p.mean(0) - q.mean(0)).abs().sum() / 2).item()
