"""The table that an unlearning is judged by: every class's Acc_f and Acc_r, beside three controls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from memmod.evaluation.accuracy import BATCH, Accuracies, evaluate, random_sets, single_classes
from memmod.evaluation.controls import RANDOM_GATES, random_gates, without_gates

if TYPE_CHECKING:
    from memmod.data import Split
    from memmod.model import ModulatedModel


HEADINGS = ("forgotten", "Acc_f", "Acc_f before", "Acc_r", "Acc_r before", "d (points)")


@dataclass(frozen=True)
class Scorecard:
    """Accuracies of memmod and its controls on the same images.

    Args:
        images: how many images were used.
        class_names: C names.
        base_accuracy: of the original network, on all images.
        methods: memmod, original, logit mask, random gates; every class by itself.
        sets: size → memmod, original, logit mask on random sets of that size.
    """

    images: int
    class_names: tuple[str, ...]
    base_accuracy: float
    methods: tuple[Accuracies, ...]
    sets: dict[int, tuple[Accuracies, ...]]

    @property
    def memmod(self) -> Accuracies:
        """The modulated model's, every class by itself."""
        return self.methods[0]

    @property
    def original(self) -> Accuracies:
        """The original network's on the same images: it forgets nothing."""
        return self.methods[1]

    def difference(self, method: Accuracies | None = None) -> tuple[float, ...]:
        """d per class: Acc_r of `method` (default: memmod) minus the original network's on the same images."""
        method = method or self.memmod
        return tuple(a - b for a, b in zip(method.acc_retain, self.original.acc_retain, strict=True))

    @property
    def mean_difference(self) -> float:
        """The mean of `difference` over the classes."""
        return sum(self.difference()) / len(self.class_names)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "images": self.images,
            "class_names": list(self.class_names),
            "base_accuracy": self.base_accuracy,
            "methods": [method.to_dict() | {"difference": list(self.difference(method))} for method in self.methods],
            "sets": {str(size): [method.to_dict() for method in methods] for size, methods in self.sets.items()},
        }

    @property
    def caption(self) -> str:
        """One line above the tables: how many images, and the original network's accuracy."""
        return f"{self.images} images; base accuracy {percent(self.base_accuracy)}"

    def sections(self) -> list[list[tuple[str, ...]]]:
        """The table's cells, as `HEADINGS` calls them: a row per class, then methods, then each size of random sets."""
        classes = [
            (name, *_cells(self.memmod, self.original, c), _points(d))
            for c, (name, d) in enumerate(zip(self.class_names, self.difference(), strict=True))
        ]
        worst = self.memmod
        whole = [(f"mean, {method.method}", *_means(method, self.original)) for method in self.methods]
        whole.append(
            (
                f"worst, {worst.method}",
                percent(worst.worst_forget),
                "",
                percent(worst.worst_retain),
                "",
                _points(min(self.difference())),
            )
        )
        sets = [
            [
                (f"{len(method.selections)} random sets of {size}, {method.method}", *_means(method, methods[1]))
                for method in methods
            ]
            for size, methods in self.sets.items()
        ]
        return [classes, whole, *sets]

    def __str__(self) -> str:
        sections = [[HEADINGS], *self.sections()]
        rows = [row for section in sections for row in section]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        texts = [
            "\n".join(
                "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
                for row in section
            )
            for section in sections
        ]
        return f"\n{rule}\n".join([*texts, self.caption])


def scorecard(
    wf: ModulatedModel,
    base: nn.Module | None,
    split: Split,
    *,
    class_names: Sequence[str] | None = None,
    set_sizes: Sequence[int] = (2, 3),
    sets_per_size: int = 10,
    seed: int = 0,
    batch_size: int = BATCH,
    on_image: Callable[[int], None] | None = None,
) -> Scorecard:
    """Measure a modulated model and its controls on a split.

    Args:
        wf: the unlearned model.
        base: the original network; None: `wf` with nothing selected, which gives the same logits.
        split: the test images and labels, with images of every class.
        class_names: default: the model's, else numbers.
        set_sizes: sizes of the random sets of classes; sizes that leave no class out are passed over.
        sets_per_size: random sets of each size.
        seed: of the random sets and of the random gates.
        on_image: called with the number of images after each forward pass; `forward_passes` says how many will come.

    Raises:
        DataError: a class without images.
    """
    classes = wf.num_classes
    names = tuple(class_names or wf.class_names or map(str, range(classes)))
    options = {"batch_size": batch_size, "on_image": on_image}
    singles = single_classes(classes)
    network = base if base is not None else _Unselected(wf)
    sizes = [size for size in set_sizes if size < classes]
    groups = {size: random_sets(classes, size, sets_per_size, seed) for size in sizes}
    every = [*singles, *(selection for group in groups.values() for selection in group)]

    own = evaluate(wf, split, every, **options)
    original, masked = without_gates(network, split, every, classes, logits_path=wf.config.logits, **options)
    shuffled = evaluate(random_gates(wf, seed), split, singles, method=RANDOM_GATES, **options)

    sets, start = {}, classes
    for size, group in groups.items():
        sets[size] = tuple(_part(method, start, len(group)) for method in (own, original, masked))
        start += len(group)
    methods = (*(_part(method, 0, classes) for method in (own, original, masked)), shuffled)
    return Scorecard(len(split), names, _overall(methods[1], split), methods, sets)


def forward_passes(num_classes: int, set_sizes: Sequence[int] = (2, 3), sets_per_size: int = 10, seed: int = 0) -> int:
    """How often `scorecard` runs a network over the split, for the same `set_sizes`, `sets_per_size` and `seed`."""
    sets = sum(len(random_sets(num_classes, size, sets_per_size, seed)) for size in set_sizes if size < num_classes)
    return 2 * num_classes + sets + 1


def percent(share: float) -> str:
    """0.0312 as "3.1 %"."""
    return f"{100 * share:.1f} %"


class _Unselected(nn.Module):
    """A modulated model with nothing selected, as a network of its own."""

    def __init__(self, wf: ModulatedModel) -> None:
        super().__init__()
        self.wf = wf

    def forward(self, x: Any) -> Any:
        return self.wf(x, forget=-1)


def _part(method: Accuracies, start: int, count: int) -> Accuracies:
    end = start + count
    return Accuracies(
        method.method, method.selections[start:end], method.acc_forget[start:end], method.acc_retain[start:end]
    )


def _overall(original: Accuracies, split: Split) -> float:
    """The accuracy on all images: the classes' accuracies, weighted by their images."""
    images = torch.bincount(split.labels, minlength=len(original.acc_forget))
    return sum(n * a for n, a in zip(images.tolist(), original.acc_forget, strict=True)) / len(split)


def _cells(method: Accuracies, original: Accuracies, row: int) -> tuple[str, str, str, str]:
    return (
        percent(method.acc_forget[row]),
        percent(original.acc_forget[row]),
        percent(method.acc_retain[row]),
        percent(original.acc_retain[row]),
    )


def _means(method: Accuracies, original: Accuracies) -> tuple[str, ...]:
    return (
        percent(method.mean_forget),
        percent(original.mean_forget),
        percent(method.mean_retain),
        percent(original.mean_retain),
        _points(method.mean_retain - original.mean_retain),
    )


def _points(difference: float) -> str:
    """-0.0021 as "-0.2"."""
    text = f"{100 * difference:+.2f}"
    return "0.00" if float(text) == 0 else text
