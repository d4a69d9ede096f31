"""Zero retrain forgetting: whether a network answers on forgotten images as a random one does."""

from __future__ import annotations

import torch
from torch import Tensor

from memmod.evaluation.metrics.divergence import check_distributions, js_divergence


def zrf(p: Tensor, random: Tensor) -> float:
    """ZRF = 1 - mean JS(M(x) ‖ T_d(x)) over forgotten images (Chundawat et al., arXiv 2205.08096), JS in nats.

    1: as a network of random weights; 1 - ln 2 = 0.307 at least. A network that is certain of one of ten classes
    where the random one is even gets 0.474.

    Args:
        p: probabilities ``[N, C]`` of the unlearned network.
        random: alike, of a network of the same architecture with random weights.

    Raises:
        DataError: other shapes, or rows that do not sum to 1.
    """
    return 1 - js_divergence(p, random).mean().item()


def zrf_as_in_published_code(p: Tensor, random: Tensor) -> float:
    """What the code published with arXiv 2205.08096 computes, to compare with figures that were made with it.

    It takes KL(m ‖ p) and KL(m ‖ q) where the formula has KL(p ‖ m) and KL(q ‖ m), and divides by N·C instead of N.
    Probabilities of exactly 0 make it infinite, as there.

    Args:
        p: probabilities ``[N, C]`` of the unlearned network.
        random: alike, of a network of the same architecture with random weights.

    Raises:
        DataError: other shapes, or rows that do not sum to 1.
    """
    p, q = check_distributions(p, random)
    m = (p + q) / 2
    reversed_kl = [torch.special.xlogy(m, m) - m * other.log() for other in (p, q)]
    return 1 - sum(part.mean().item() for part in reversed_kl) / 2
