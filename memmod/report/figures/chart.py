"""What all charts share: their form, their type and lines, and how they say what they show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memmod.report.palette import variable

MANY = 50
"""More classes than this leave no room for a row each."""
# Up to this many, cells have room for their figures.
FEW = 12
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_FONT = 'system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif'
_SOFT, _LINE = variable("soft"), variable("line")

_AXIS = {
    "labelColor": _SOFT,
    "titleColor": _SOFT,
    "gridColor": _LINE,
    "domainColor": _LINE,
    "tickColor": _LINE,
    "labelFontSize": 12,
    "titleFontSize": 12,
    "titleFontWeight": "normal",
    "labelLimit": 140,
}
_CONFIG = {
    "font": _FONT,
    "background": None,
    "view": {"stroke": None},
    # the page names each chart itself, and holds its figures in a table or in words
    "aria": False,
    "axis": _AXIS,
    "legend": {
        "labelColor": variable("text"),
        "titleColor": _SOFT,
        "labelFontSize": 12,
        "orient": "top",
        "title": None,
        "offset": 8,
        "columns": 3,
        "symbolStrokeWidth": 0,
        "labelLimit": 240,
    },
    "text": {"color": variable("text"), "fontSize": 11},
}


@dataclass(frozen=True)
class Chart:
    """One chart.

    Args:
        name: of its file.
        title: of the figure.
        description: what a reader who does not see it is told.
        spec: Vega-Lite, without the width: that of the page's column, or of the file.
    """

    name: str
    title: str
    description: str
    spec: Mapping[str, Any]

    def at(self, width: int | str) -> dict[str, Any]:
        """The whole specification at a width in pixels, or "container"."""
        axis = _AXIS if width == "container" else {**_AXIS, "labelLimit": 0.4 * width}
        return {
            "$schema": _SCHEMA,
            "config": {**_CONFIG, "axis": axis},
            "width": width,
            "autosize": {"type": "fit-x", "contains": "padding"},
            "padding": {"left": 0, "top": 4, "right": 12, "bottom": 4},
            **self.spec,
        }


def rows(values: list[dict[str, Any]]) -> dict[str, Any]:
    """Data inside of a specification."""
    return {"values": values}


def percent_axis(title: str | None = None, **more: Any) -> dict[str, Any]:
    """An axis of shares."""
    return {"format": ".0%", "tickCount": 5, "title": title, **more}


def height(rows: int, each: float) -> float:
    """Of a chart with a row for each of something, in pixels."""
    return max(rows, 1) * each


def by_rows(each: float) -> dict[str, Any]:
    """What says in a specification how high a row is, where the page knows how many there are."""
    return {"usermeta": {"row": each}, "height": each}
