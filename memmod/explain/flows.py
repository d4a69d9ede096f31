"""Where the images of a class go: what the network calls them before and after it has forgotten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from memmod.evaluation.accuracy import BATCH, as_forget, batches
from memmod.outputs import logits_of

if TYPE_CHECKING:
    from memmod.data import Split
    from memmod.model import ModulatedModel


@dataclass(frozen=True)
class Flows:
    """Shares of predictions. Row c is of the test images of class c, and sums to 1; 0 where there are none.

    Args:
        before: ``[C, C]``, nothing forgotten.
        after: ``[C, C]``, with class c forgotten.
        probabilities: ``[C, C]``, mean probabilities, nothing forgotten.
        sets: the classes forgotten together, and of each of them its row ``[C]``.
    """

    before: np.ndarray
    after: np.ndarray
    probabilities: np.ndarray
    sets: tuple[tuple[tuple[int, ...], dict[int, np.ndarray]], ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "before": self.before.round(4).tolist(),
            "after": self.after.round(4).tolist(),
            "sets": [
                {"classes": list(classes), "after": {str(c): row.round(4).tolist() for c, row in rows.items()}}
                for classes, rows in self.sets
            ],
        }


@torch.no_grad()
def flows(
    wf: ModulatedModel,
    split: Split,
    sets: Sequence[Sequence[int]] = (),
    *,
    batch_size: int = BATCH,
    on_image: Callable[[int], None] | None = None,
) -> Flows:
    """What the network calls the images of a split, with nothing, each class, and each set forgotten.

    Each image runs twice, and once more for every set that its class is in.

    Args:
        sets: classes forgotten together.
        on_image: called with the number of images after each batch.
    """
    classes = wf.num_classes
    counts = {name: np.zeros((classes, classes)) for name in ("before", "after", "probabilities")}
    chosen = [tuple(sorted(set(each))) for each in sets]
    of_sets = [np.zeros((classes, classes)) for _ in chosen]
    for x, labels in batches(split, batch_size, wf.device):
        before = wf.logits(wf(x, forget=-1))
        _count(counts["before"], labels, before)
        np.add.at(counts["probabilities"], labels.numpy(), before.softmax(1).double().cpu().numpy())
        _count(counts["after"], labels, wf.logits(wf(x, forget=labels.to(wf.device))))
        for each, table in zip(chosen, of_sets, strict=True):
            own = torch.isin(labels, torch.tensor(each))
            if own.any():
                _count(table, labels[own], wf.logits(wf(x[own.to(x.device)], forget=as_forget(each))))
        if on_image is not None:
            on_image(len(labels))
    shares = {name: _shares(table) for name, table in counts.items()}
    rows = tuple((each, {c: _shares(table)[c] for c in each}) for each, table in zip(chosen, of_sets, strict=True))
    return Flows(shares["before"], shares["after"], shares["probabilities"], rows)


@torch.no_grad()
def predictions_of(
    networks: Sequence[nn.Module], split: Split, classes: int, logits_path: str | None = None, batch_size: int = BATCH
) -> np.ndarray:
    """Mean shares of predictions ``[C]`` of ordinary networks on the images of a split."""
    table = np.zeros((1, classes))
    for network in networks:
        device = next(network.parameters()).device
        for x, labels in batches(split, batch_size, device):
            _count(table, torch.zeros_like(labels), logits_of(network(x), logits_path))
    return _shares(table)[0]


def _count(table: np.ndarray, labels: Tensor, logits: Tensor) -> None:
    np.add.at(table, (labels.numpy(), logits.argmax(1).cpu().numpy()), 1)


def _shares(table: np.ndarray) -> np.ndarray:
    sums = table.sum(1, keepdims=True)
    return np.divide(table, sums, out=np.zeros_like(table), where=sums > 0)
