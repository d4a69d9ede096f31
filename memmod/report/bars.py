"""Bars of Acc_f and Acc_r per class as inline SVG, with a tick where the original network stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from memmod.report.data import Method

_HEIGHT = 9
_GAP = 3


@dataclass(frozen=True)
class BarRow:
    """Both bars of one class. Widths are percentages, so the text beside them keeps its size on any screen."""

    label: str
    svg: Markup
    forget: float
    retain: float


def bars(method: Method, original: Method, class_names: Sequence[str]) -> list[BarRow]:
    """One row per class: the accuracy on it (upper bar) and on all others (lower bar) once it is selected."""
    rows = []
    for c, name in enumerate(class_names):
        pair = _bar("forget", 0, method.forget[c], original.forget[c])
        pair += _bar("retain", _HEIGHT + _GAP, method.retain[c], original.retain[c])
        height = 2 * _HEIGHT + _GAP
        svg = Markup('<svg width="100%" height="{}" aria-hidden="true" focusable="false">{}</svg>').format(height, pair)
        rows.append(BarRow(name, svg, method.forget[c], method.retain[c]))
    return rows


def _bar(kind: str, y: int, share: float, before: float) -> Markup:
    # the tick is drawn left of its place at 100 %, or it would fall outside the picture
    track = Markup('<rect class="track" width="100%" height="{}" y="{}"/>').format(_HEIGHT, y)
    bar = Markup('<rect class="bar {}" width="{:.2f}%" height="{}" y="{}"/>').format(kind, 100 * share, _HEIGHT, y)
    tick = Markup('<rect class="tick" x="{:.2f}%" width="2" height="{}" y="{}" transform="translate(-2)"/>').format(
        100 * before, _HEIGHT, y
    )
    return track + bar + tick
