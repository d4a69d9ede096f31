"""The memory of each layer as a picture: rows are classes, columns are units, ink is what the gate removes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memmod.ops.gating import CLOSED
from memmod.report.data import Memory
from memmod.report.png import data_uri, opacity_png

INK = (214, 72, 40)  # readable on the light and on the dark background
_LABELLED = 20  # more classes than this leave no room for their names beside the rows
# more units than this get two columns of the page, or all of them
_WIDE, _WIDEST = 96, 384


# More gates than this would make the page too large to open.
_DRAWN = 1_500_000


@dataclass(frozen=True)
class Picture:
    """A layer's picture and the words that go with it."""

    layer: str
    source: str
    description: str
    classes: int
    units: int
    closed: float
    shared: int
    size: str
    labelled: bool


def pictures(memories: Sequence[Memory], class_names: Sequence[str]) -> list[Picture] | None:
    """Every layer's picture; None where there are too many gates to draw them all."""
    if sum(memory.gates.size for memory in memories) > _DRAWN:
        return None
    return [picture(memory, class_names) for memory in memories]


def picture(memory: Memory, class_names: Sequence[str]) -> Picture:
    """Draw `memory.gates` `[C, K]`, one pixel per gate, enlarged by the page."""
    gates = memory.gates
    classes, units = gates.shape
    closed = gates < CLOSED
    by_class = closed.mean(axis=1)
    most, least = int(by_class.argmax()), int(by_class.argmin())
    description = (
        f"Gates of layer {memory.layer}: {classes} classes by {units} units. "
        f"{closed.mean():.0%} of the gates are closed, most for {class_names[most]} ({by_class[most]:.0%}), "
        f"fewest for {class_names[least]} ({by_class[least]:.0%})."
    )
    return Picture(
        layer=memory.layer,
        source=data_uri(opacity_png(1 - gates, INK)),
        description=description,
        classes=classes,
        units=units,
        closed=float(closed.mean()),
        shared=int(closed.all(axis=0).sum()),
        size="widest" if units > _WIDEST else "wide" if units > _WIDE else "",
        labelled=classes <= _LABELLED,
    )
