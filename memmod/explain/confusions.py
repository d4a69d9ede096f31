"""Whether classes that the network confuses close the same units: the atlas against the network's own errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from memmod.errors import SelectionError
from memmod.explain.atlas import weighted_jaccard

PERMUTATIONS = 999
CONTROLS = 20
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Control:
    """The same figure of random memories with the same closed shares: its mean, and an interval of 95 %."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """Spearman's correlation, over pairs of classes, of the rows' Jaccard index and the confusions.

    Args:
        rho: the correlation.
        p: the share of permutations of the classes that reach it (Mantel's test), the identity among them.
        pairs: how many pairs.
        control: of random memories.
    """

    rho: float
    p: float
    pairs: int
    control: Control

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def agreement(
    gates: Mapping[str, np.ndarray], confused: np.ndarray, seed: int = 0, permutations: int = PERMUTATIONS
) -> Agreement:
    """Compare the atlas with the network's confusions.

    The control shuffles each class's row within each memory: as many units are closed, which ones is chance.

    Args:
        gates: by memory, ``[C, K]``, C ≥ 4.
        confused: symmetric ``[C, C]``, larger for classes that are confused more.

    Raises:
        SelectionError: fewer than 4 classes, whose few pairs correlate by chance.
    """
    classes = len(confused)
    if classes < 4:
        raise SelectionError(f"{classes} classes have {classes * (classes - 1) // 2} pairs: too few to correlate")
    generator = np.random.default_rng(seed)
    upper = np.triu_indices(classes, 1)
    errors = _standard_ranks(confused[upper])
    alike = weighted_jaccard(1 - np.concatenate(list(gates.values()), axis=1))
    # Ranks do not change where classes are permuted, their places do.
    ranked = np.zeros_like(alike)
    ranked[upper] = _standard_ranks(alike[upper])
    ranked += ranked.T
    rho = float(ranked[upper] @ errors)
    reached = 1
    for _ in range(permutations):
        order = generator.permutation(classes)
        reached += int(ranked[np.ix_(order, order)][upper] @ errors >= rho - 1e-12)
    controls = []
    for _ in range(CONTROLS):
        shuffled = [generator.permuted(own, axis=1) for own in gates.values()]
        controls.append(_standard_ranks(weighted_jaccard(1 - np.concatenate(shuffled, axis=1))[upper]) @ errors)
    low, high = np.quantile(controls, INTERVAL)
    control = Control(float(np.mean(controls)), float(low), float(high))
    return Agreement(rho, reached / (permutations + 1), len(errors), control)


def _standard_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of mean 0 and norm 1, whose product is Spearman's correlation; 0 of constant values."""
    ranks = rankdata(values)
    ranks -= ranks.mean()
    norm = np.linalg.norm(ranks)
    return ranks / norm if norm > 0 else ranks
