"""A heat map: one colour whose opacity is the value, so that it stands on light and dark paper alike."""

from __future__ import annotations

from typing import Any

from memmod.report.figures.chart import FEW, height, rows
from memmod.report.palette import variable

# A step of a cell in pixels, by how many there are.
_STEPS = ((FEW, 24), (24, 18), (60, 14))
_LEAST = 9


def heat(
    values: list[dict[str, Any]],
    across: str | None,
    columns: list[str],
    lines: list[str],
    *,
    colour: str,
    percent: bool = False,
    highest: float = 1.0,
) -> dict[str, Any]:
    """A specification of cells.

    Args:
        values: row, column and value of each.
        across: what the columns are, beneath them.
        columns, lines: their names in order. They are the scales' domains, and no order to sort by: that would become
            an expression, in which a name may not hold every character.
        highest: the value of full ink.
    """
    step = next((step for most, step in _STEPS if len(lines) <= most), _LEAST)
    named = {"ticks": False, "domain": False, "labelPadding": 4, "labelOverlap": False}
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "rect", "color": variable(colour), "stroke": variable("line"), "strokeWidth": 0.5},
            "encoding": {
                "fillOpacity": {
                    "field": "value",
                    "type": "quantitative",
                    "scale": {"domain": [0, highest], "range": [0, 1], "clamp": True},
                    "legend": None,
                }
            },
        }
    ]
    if len(columns) <= FEW:
        shown = "round(100 * datum.value)" if percent else "format(datum.value, '.2f')"
        hidden = "datum.value == null || datum.value < 0.005"
        layers.append(
            {
                "transform": [{"calculate": f"{hidden} ? '' : {shown} + ''", "as": "shown"}],
                "mark": {"type": "text", "fontSize": 10},
                "encoding": {"text": {"field": "shown", "type": "nominal"}},
            }
        )
    return {
        "data": rows(values),
        "height": height(len(lines), step),
        "encoding": {
            "x": {
                "field": "column",
                "type": "nominal",
                "sort": None,
                "scale": {"domain": columns},
                "axis": {**named, "title": across, "labelAngle": -45, "orient": "bottom"},
            },
            "y": {
                "field": "row",
                "type": "nominal",
                "sort": None,
                "scale": {"domain": lines},
                "axis": {**named, "title": None},
            },
        },
        "layer": layers,
    }
