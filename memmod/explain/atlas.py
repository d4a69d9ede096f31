"""The class atlas: what the memories alone say of classes. Which units each closes, which of them are its own, and
which classes close the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform
from scipy.stats import rankdata

from memmod.errors import SelectionError
from memmod.ops.gating import CLOSED

# Rows whose ranks are made at once: of 64 rows of 40,000 units they and their order take 60 MB.
RANKED = 64
# Pairs of more classes are too many to draw, and to look at.
MOST_PAIRS = 200
SPECIFIC = 10


@dataclass(frozen=True)
class LayerRow:
    """One memory: its name, its units, and how many of them each class closes, ``[C]``."""

    name: str
    units: int
    closed: tuple[int, ...]


@dataclass(frozen=True)
class SpecificUnit:
    """A unit that a class closes and few others do.

    Args:
        layer: the memory's name.
        unit: its number.
        specificity: the mean gate of the other classes less this class's, in [-1, 1].
        gate: this class's.
    """

    layer: str
    unit: int
    specificity: float
    gate: float


@dataclass(frozen=True)
class Overlap:
    """The class that also closes the largest share of a class's closed units."""

    class_: int
    share: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"class": self.class_, "share": self.share}


@dataclass(frozen=True)
class Likeness:
    """How alike the rows of classes are.

    Args:
        jaccard: ``[C, C]``: Σ min(a, b) / Σ max(a, b) of what the gates remove, 1 - s.
        rank: ``[C, C]``: Spearman's correlation of the gates.
        linkage: the dendrogram of 1 - jaccard by average linkage, as scipy's.
        order: its leaves from left to right.
    """

    jaccard: np.ndarray
    rank: np.ndarray
    linkage: np.ndarray
    order: tuple[int, ...]


@dataclass(frozen=True)
class Atlas:
    """What the memories say of C classes.

    Args:
        threshold: gates below it are closed.
        layers: one row a memory.
        closed: units that each class closes, ``[C]``.
        closed_by: how many units are closed by exactly k classes, ``[C + 1]``.
        specific: per class, its most specific units.
        overlaps: per class, who shares most of its closed units; None where it closes none, or there is no other class.
        likeness: None of one class.
    """

    threshold: float
    layers: tuple[LayerRow, ...]
    closed: tuple[int, ...]
    closed_by: tuple[int, ...]
    specific: tuple[tuple[SpecificUnit, ...], ...]
    overlaps: tuple[Overlap | None, ...]
    likeness: Likeness | None

    @property
    def units(self) -> int:
        """Over all memories."""
        return sum(layer.units for layer in self.layers)

    def to_dict(self, pairs: int = MOST_PAIRS) -> dict[str, Any]:
        """As JSON values; the matrices of more than `pairs` classes are left out."""
        drawn = self.likeness if len(self.closed) <= pairs else None
        return {
            "threshold": self.threshold,
            "layers": [asdict(layer) | {"closed": list(layer.closed)} for layer in self.layers],
            "units": self.units,
            "closed": list(self.closed),
            "closed_by": list(self.closed_by),
            "specific": [[asdict(unit) for unit in units] for units in self.specific],
            "overlaps": [None if overlap is None else overlap.to_dict() for overlap in self.overlaps],
            "jaccard": None if drawn is None else drawn.jaccard.round(4).tolist(),
            "rank": None if drawn is None else drawn.rank.round(4).tolist(),
            "linkage": None if drawn is None else drawn.linkage.round(4).tolist(),
            "order": None if self.likeness is None else list(self.likeness.order),
        }


def atlas(gates: Mapping[str, np.ndarray], threshold: float = CLOSED, specific: int = SPECIFIC) -> Atlas:
    """Draw the atlas of gates.

    1,000 rows of 40,000 units take 70 s and 1.1 GB on one core.

    Args:
        gates: by memory, ``[C, K]``: `ModulatedModel.gates()` as arrays.
        threshold: gates below it are closed.
        specific: units listed for each class.

    Raises:
        SelectionError: no memories, or those of different numbers of classes.
    """
    rows = np.concatenate(_checked(gates), axis=1).astype(np.float32)
    shut = rows < threshold
    layers, start = [], 0
    names, units = [], []
    for name, own in gates.items():
        width = own.shape[1]
        layers.append(LayerRow(name, width, tuple(shut[:, start : start + width].sum(1).tolist())))
        names += [name] * width
        units += range(width)
        start += width
    classes = len(rows)
    sums = rows.sum(0, dtype=np.float64)
    others = ((sums - row) / max(1, classes - 1) for row in rows)
    return Atlas(
        threshold,
        tuple(layers),
        tuple(shut.sum(1).tolist()),
        tuple(np.bincount(shut.sum(0), minlength=classes + 1).tolist()),
        tuple(
            _specific(row, closed, other, names, units, specific)
            for row, closed, other in zip(rows, shut, others, strict=True)
        ),
        _overlaps(shut),
        likeness(rows) if classes > 1 else None,
    )


def likeness(rows: np.ndarray) -> Likeness:
    """How alike rows of gates ``[C, K]`` are, C ≥ 2."""
    jaccard = weighted_jaccard(1 - rows)
    tree = linkage(squareform(1 - jaccard, checks=False), "average")
    if len(rows) <= MOST_PAIRS:
        tree = optimal_leaf_ordering(tree, squareform(1 - jaccard, checks=False))
    return Likeness(jaccard, spearman(rows), tree, tuple(leaves_list(tree).tolist()))


def weighted_jaccard(values: np.ndarray) -> np.ndarray:
    """Σ min / Σ max of each pair of rows ``[C, K]`` ≥ 0 → ``[C, C]``; 1 where both rows are 0."""
    sums = values.sum(1, dtype=np.float64)
    # Σ min = (Σ a + Σ b - Σ |a - b|) / 2, Σ max = (Σ a + Σ b + Σ |a - b|) / 2; 2.5 times as fast as scipy's pdist.
    apart = squareform(torch.pdist(torch.from_numpy(np.ascontiguousarray(values)), 1).double().numpy())
    both = sums[:, None] + sums[None]
    return np.divide(both - apart, both + apart, out=np.ones_like(apart), where=both + apart > 0)


def spearman(rows: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of each pair of rows ``[C, K]`` → ``[C, C]``; 0 where a row is constant."""
    ranks = np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), RANKED):
        block = rankdata(rows[start : start + RANKED], axis=1)
        block -= block.mean(1, keepdims=True)
        norms = np.linalg.norm(block, axis=1, keepdims=True)
        ranks[start : start + RANKED] = block / np.where(norms > 0, norms, 1)
    found = np.clip((ranks @ ranks.T).astype(np.float64), -1, 1)
    np.fill_diagonal(found, 1.0)
    return found


def _checked(gates: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    rows = {name: own.shape[0] for name, own in gates.items()}
    if not rows or len(set(rows.values())) > 1:
        raise SelectionError(f"an atlas needs memories of one number of classes; there are {rows or 'none'}")
    return list(gates.values())


def _specific(
    row: np.ndarray, shut: np.ndarray, others: np.ndarray, names: Sequence[str], units: Sequence[int], count: int
) -> tuple[SpecificUnit, ...]:
    """The closed units of one class in the order of their specificity; `others` are the other classes' mean gates."""
    specificity = np.where(shut, others - row, -np.inf)
    best = np.argsort(-specificity, kind="stable")[: min(count, int(shut.sum()))]
    return tuple(SpecificUnit(names[u], units[u], float(specificity[u]), float(row[u])) for u in best)


def _overlaps(shut: np.ndarray) -> tuple[Overlap | None, ...]:
    both = shut.astype(np.float32) @ shut.astype(np.float32).T
    own = np.diag(both).copy()
    np.fill_diagonal(both, -1)
    others = both.argmax(1)
    return tuple(
        Overlap(int(other), float(both[c, other] / own[c])) if own[c] and len(shut) > 1 else None
        for c, other in enumerate(others)
    )
