"""Which classes close how much of which layer, and how many classes share a closed unit."""

from __future__ import annotations

from collections.abc import Sequence

from memmod.report import words
from memmod.report.explanation import Atlas
from memmod.report.figures.chart import MANY, Chart, by_rows, height, percent_axis, rows
from memmod.report.figures.heat import heat
from memmod.report.palette import variable

# Up to this many, each number of classes has a bar of its own.
_BARS = 20


def layers(atlas: Atlas, class_names: Sequence[str]) -> Chart:
    """A cell for each layer and class; for many classes, the range over them for each layer."""
    title = "Closed units, layer by layer"
    description = (
        f"Share of each layer's units whose gate is below {atlas.threshold:g}, class by class: "
        f"{min(atlas.closed)} to {max(atlas.closed)} of {atlas.units} units in all."
    )
    names = [words.layer(layer.name) for layer in atlas.layers]
    if len(class_names) > MANY:
        return Chart("atlas", title, description, _ranges(atlas))
    values = [
        {
            "row": words.layer(layer.name),
            "column": class_names[c],
            "value": closed / layer.units if layer.units else None,
        }
        for layer in atlas.layers
        for c, closed in enumerate(layer.closed)
    ]
    spec = heat(values, "forgotten class", list(class_names), names, colour="heat", percent=True)
    return Chart("atlas", title, description, spec)


def _ranges(atlas: Atlas) -> dict:
    values = []
    for layer in atlas.layers:
        shares = sorted(closed / layer.units for closed in layer.closed) if layer.units else [0.0]
        low, middle, high = (shares[round(part * (len(shares) - 1))] for part in (0.25, 0.5, 0.75))
        ends = {"least": shares[0], "most": shares[-1], "low": low, "high": high, "middle": middle}
        values.append({"layer": words.layer(layer.name), **ends})
    x = {"type": "quantitative", "scale": {"domain": [0, 1]}}
    return {
        "data": rows(values),
        "height": height(len(values), 12),
        "encoding": {"y": {"field": "layer", "type": "nominal", "sort": None, "title": None}},
        "layer": [
            {
                "mark": {"type": "rule", "color": variable("before")},
                "encoding": {
                    "x": {
                        **x,
                        "field": "least",
                        "axis": percent_axis("closed units: range, quarters and median of the classes"),
                    },
                    "x2": {"field": "most"},
                },
            },
            {
                "mark": {"type": "bar", "color": variable("heat"), "height": {"band": 0.6}},
                "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}},
            },
            {
                "mark": {"type": "tick", "color": variable("text"), "thickness": 2},
                "encoding": {"x": {**x, "field": "middle"}},
            },
        ],
    }


def closed_by(atlas: Atlas) -> Chart:
    """How many units exactly k of the classes close."""
    classes = len(atlas.closed)
    values = [{"classes": k, "units": units} for k, units in enumerate(atlas.closed_by)]
    few = classes <= _BARS
    bars = {
        "x": {
            "field": "classes",
            "type": "ordinal" if few else "quantitative",
            "axis": {"title": "closed by exactly so many classes", "labelAngle": 0, "grid": False},
        },
        "y": {"field": "units", "type": "quantitative", "axis": {"title": "units", "tickCount": 4}},
    }
    mark = (
        {"type": "bar", "color": variable("heat")}
        if few
        else {"type": "area", "color": variable("heat"), "interpolate": "step"}
    )
    above = {"mark": {"type": "text", "dy": -7}, "encoding": {"text": {"field": "units"}}}
    shared = sum(atlas.closed_by[2:])
    description = (
        f"Of {atlas.units} units, {atlas.closed_by[0]} are closed by no class, "
        f"{sum(atlas.closed_by[1:2])} by one alone, {shared} by several, {atlas.closed_by[-1]} by all."
    )
    spec = {"data": rows(values), "height": 160, "encoding": bars, "layer": [{"mark": mark}, *([above] if few else [])]}
    return Chart("closed-by", "How many classes share a closed unit", description, spec)


def layer_choice() -> Chart:
    """Bars for the chosen class, whose rows the page fills in: layer, share, the mean over all classes."""
    x = {"type": "quantitative", "scale": {"domain": [0, 1]}}
    spec = {
        "data": {"name": "rows"},
        **by_rows(16),
        "encoding": {
            "y": {
                "field": "layer",
                "type": "nominal",
                "sort": None,
                "title": None,
                "axis": {"ticks": False, "domain": False},
            }
        },
        "layer": [
            {
                "mark": {"type": "bar", "color": variable("forget"), "height": {"band": 0.7}},
                "encoding": {"x": {**x, "field": "share", "axis": percent_axis("closed units of the layer")}},
            },
            {
                "mark": {"type": "tick", "color": variable("text"), "thickness": 2},
                "encoding": {"x": {**x, "field": "mean"}},
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 4, "fontSize": 10},
                "encoding": {"x": {"value": "width"}, "text": {"field": "shown", "type": "nominal"}},
            },
        ],
        "padding": {"left": 0, "top": 4, "right": 64, "bottom": 4},
    }
    return Chart("layer-choice", "Closed units", "", spec)
