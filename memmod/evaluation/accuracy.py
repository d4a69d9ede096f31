"""Accuracies under selections: on the classes that are forgotten (Acc_f) and on all others (Acc_r)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memmod.data import batches_of
from memmod.errors import DataError, SelectionError
from memmod.selection import Forget

if TYPE_CHECKING:
    from memmod.data import Split
    from memmod.model import ModulatedModel

BATCH = 500

Selections = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Accuracies:
    """Accuracies of one method under a list of selections, in the selections' order.

    Args:
        method: what forgets.
        selections: the classes forgotten each time.
        acc_forget: accuracy on the selected classes' images.
        acc_retain: accuracy on all other images.
    """

    method: str
    selections: tuple[tuple[int, ...], ...]
    acc_forget: tuple[float, ...]
    acc_retain: tuple[float, ...]

    @property
    def worst_forget(self) -> float:
        """The highest accuracy that a selection leaves on what it forgets."""
        return max(self.acc_forget)

    @property
    def worst_selection(self) -> tuple[int, ...]:
        """The selection that leaves it."""
        return self.selections[self.acc_forget.index(self.worst_forget)]

    @property
    def mean_forget(self) -> float:
        """The mean of `acc_forget`, each selection counted once."""
        return sum(self.acc_forget) / len(self.acc_forget)

    @property
    def worst_retain(self) -> float:
        """The lowest accuracy on the rest."""
        return min(self.acc_retain)

    @property
    def mean_retain(self) -> float:
        """The mean of `acc_retain`, each selection counted once."""
        return sum(self.acc_retain) / len(self.acc_retain)

    def to_dict(self) -> dict[str, Any]:
        """Fields and aggregates as JSON values."""
        return {
            "method": self.method,
            "selections": [list(selection) for selection in self.selections],
            "acc_forget": list(self.acc_forget),
            "acc_retain": list(self.acc_retain),
            "worst_forget": self.worst_forget,
            "mean_forget": self.mean_forget,
            "worst_retain": self.worst_retain,
            "mean_retain": self.mean_retain,
        }


class Tally:
    """Counts right answers per selection and per class, and turns them into accuracies.

    Args:
        selections: R lists of classes.
        num_classes: C.
    """

    def __init__(self, selections: Selections, num_classes: int) -> None:
        self.selections = tuple(tuple(selection) for selection in selections)
        self.right = torch.zeros(len(self.selections), num_classes, dtype=torch.int64)
        self.images = torch.zeros_like(self.right)

    def add(self, row: int, logits: Tensor, labels: Tensor) -> None:
        """Count logits ``[n, C]`` of images with labels ``[n]`` under selection number `row`."""
        hits = logits.argmax(1).cpu() == labels
        classes = self.right.shape[1]
        self.right[row] += torch.bincount(labels[hits], minlength=classes)
        self.images[row] += torch.bincount(labels, minlength=classes)

    def accuracies(self, method: str) -> Accuracies:
        """Acc_f and Acc_r of every selection.

        Raises:
            DataError: a selection without images, or one that leaves none.
        """
        forget, retain = [], []
        for row, selection in enumerate(self.selections):
            own = torch.zeros(self.right.shape[1], dtype=torch.bool)
            own[list(selection)] = True
            for accuracies, chosen, what in ((forget, own, "of"), (retain, ~own, "beside")):
                count = int(self.images[row, chosen].sum())
                if count == 0:
                    raise DataError(
                        f"the split has no images {what} class {', '.join(map(str, selection))}, whose accuracy cannot "
                        "be measured: add images, or evaluate other classes"
                    )
                accuracies.append(int(self.right[row, chosen].sum()) / count)
        return Accuracies(method, self.selections, tuple(forget), tuple(retain))


def single_classes(num_classes: int) -> list[tuple[int, ...]]:
    """Every class by itself."""
    return [(c,) for c in range(num_classes)]


def random_sets(num_classes: int, size: int, count: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Up to `count` different random sets of `size` classes, each sorted.

    Raises:
        SelectionError: the sets would be empty or hold every class.
    """
    if not 1 <= size < num_classes:
        raise SelectionError(
            f"sets of {size} classes cannot be evaluated with {num_classes} classes: a size lies between 1 and "
            f"{num_classes - 1}"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randperm(num_classes, generator=generator)[:size].sort().values.tolist() for _ in range(20 * count))
    return list(dict.fromkeys(map(tuple, drawn)))[:count]


def as_forget(selection: Sequence[int]) -> Forget:
    """What `ModulatedModel` takes to forget these classes for the whole batch."""
    return selection[0] if len(selection) == 1 else set(selection)


def evaluate(
    wf: ModulatedModel,
    split: Split,
    selections: Selections | None = None,
    *,
    method: str = "memmod",
    batch_size: int = BATCH,
    on_image: Callable[[int], None] | None = None,
) -> Accuracies:
    """Accuracies of a modulated model: the whole split once per selection.

    Args:
        split: images ``[N, ...]`` and labels ``[N]``.
        selections: what to forget each time; default: every class by itself.
        method: what the result calls the model.
        on_image: called with the number of images after each forward pass, for progress.

    Raises:
        DataError: a selected class has no images.
    """
    selections = single_classes(wf.num_classes) if selections is None else selections
    tally = Tally(selections, wf.num_classes)
    with torch.no_grad():
        for x, labels in batches(split, batch_size, wf.device):
            for row, selection in enumerate(tally.selections):
                tally.add(row, wf.logits(wf(x, forget=as_forget(selection))), labels)
                if on_image is not None:
                    on_image(len(labels))
    return tally.accuracies(method)


def batches(
    split: Split, batch_size: int, device: torch.device | str, order: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images on `device`, labels on the CPU) of a split, in batches (see `batches_of`), each image decoded once."""
    order = torch.arange(len(split)) if order is None else order
    for part in batches_of(order, batch_size):
        yield split.batch(part).to(device), split.labels[part]
