"""Acc_f and Acc_r of every class, beside the original network."""

from __future__ import annotations

from typing import Any

from memmod.report.cards import ClassAccuracies, Scorecard
from memmod.report.figures.chart import MANY, Chart, height, percent_axis, rows
from memmod.report.palette import variable
from memmod.report.words import percent

_FORGET, _RETAIN = "Acc_f, on the forgotten class", "Acc_r, on all others"


def accuracies(card: Scorecard) -> Chart:
    """A bar for each accuracy and a tick where the original stands; for many classes, a dot for each."""
    ours, original = card.methods[:2]
    description = (
        f"Accuracy with each class forgotten in turn: on the class at most {percent(ours.worst_forget)}, on the others "
        f"{percent(ours.mean_retain)} on average; of the original network {percent(original.mean_forget)} and "
        f"{percent(original.mean_retain)}."
    )
    values: list[dict[str, Any]] = []
    for c, name in enumerate(card.class_names):
        pairs = ((_FORGET, ours.acc_forget[c], original.acc_forget[c]),)
        pairs += ((_RETAIN, ours.acc_retain[c], original.acc_retain[c]),)
        values += [{"class": name, "kind": kind, "share": now, "before": before} for kind, now, before in pairs]
    if len(card.class_names) > MANY:
        return Chart("accuracies", "Each class, forgotten in turn", description, _dots(card))
    kinds = [_FORGET, _RETAIN]
    row = {
        "y": {"field": "class", "type": "nominal", "sort": None, "title": None, "axis": _NAMES},
        "yOffset": {"field": "kind", "sort": kinds},
    }
    spec = {
        "data": rows(values),
        "height": height(len(card.class_names), 26),
        "encoding": {**row, "x": {"field": "share", "type": "quantitative", "axis": percent_axis(), "scale": _WHOLE}},
        "layer": [
            {
                "mark": {"type": "bar", "height": {"band": 0.8}},
                "encoding": {
                    "color": {
                        "field": "kind",
                        "scale": {"domain": kinds, "range": [variable("forget"), variable("retain")]},
                    }
                },
            },
            {
                "mark": {"type": "tick", "thickness": 2, "color": variable("text"), "height": {"band": 0.95}},
                "encoding": {"x": {"field": "before", "type": "quantitative"}},
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 4, "fontSize": 10},
                "encoding": {"x": {"value": "width"}, "text": {"field": "share", "format": ".1%"}},
            },
        ],
        "padding": {"left": 0, "top": 4, "right": 46, "bottom": 4},
    }
    return Chart("accuracies", "Each class, forgotten in turn", description, spec)


def class_accuracies(found: ClassAccuracies) -> Chart | None:
    """A bar for each class of a network that is what it is, with a tick where the original stands."""
    if len(found.class_names) > MANY:
        return None
    original = found.original or [None] * len(found.now)
    values = [
        {"class": name, "share": now, "before": before, "kind": "erased" if c in found.forget else "kept"}
        for c, (name, now, before) in enumerate(zip(found.class_names, found.now, original, strict=True))
    ]
    colour = {"condition": {"test": "datum.kind == 'erased'", "value": variable("forget")}, "value": variable("retain")}
    spec = {
        "data": rows(values),
        "height": height(len(values), 18),
        "encoding": {
            "y": {"field": "class", "type": "nominal", "sort": None, "title": None, "axis": _NAMES},
            "x": {"field": "share", "type": "quantitative", "axis": percent_axis(), "scale": _WHOLE},
        },
        "layer": [
            {"mark": {"type": "bar", "height": {"band": 0.7}}, "encoding": {"color": colour}},
            {
                "mark": {"type": "tick", "thickness": 2, "color": variable("text")},
                "encoding": {"x": {"field": "before", "type": "quantitative"}},
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 4, "fontSize": 10},
                "encoding": {"x": {"value": "width"}, "text": {"field": "share", "format": ".1%"}},
            },
        ],
        "padding": {"left": 0, "top": 4, "right": 46, "bottom": 4},
    }
    description = f"Accuracy on each class's test images, {percent(found.mean_retain(found.now))} on average"
    return Chart("accuracies", "Accuracy by class", f"{description} over the classes that stay.", spec)


def _dots(card: Scorecard) -> dict[str, Any]:
    ours, changes = card.methods[0], []
    for c, name in enumerate(card.class_names):
        now, before = ours.acc_retain[c], card.methods[1].acc_retain[c]
        change = None if now is None or before is None else 100 * (now - before)
        changes.append({"class": name, "forget": ours.acc_forget[c], "change": change})
    return {
        "data": rows(changes),
        "height": 260,
        "mark": {"type": "circle", "size": 30, "opacity": 0.5, "color": variable("forget"), "tooltip": True},
        "encoding": {
            "x": {
                "field": "change",
                "type": "quantitative",
                "axis": {"title": "Acc_r, in points from the original network's"},
            },
            "y": {
                "field": "forget",
                "type": "quantitative",
                "axis": percent_axis("Acc_f, on the forgotten class"),
                "scale": _WHOLE,
            },
            "tooltip": [
                {"field": "class"},
                {"field": "forget", "format": ".1%"},
                {"field": "change", "format": "+.2f"},
            ],
        },
    }


_WHOLE = {"domain": [0, 1]}
_NAMES = {"ticks": False, "domain": False, "labelPadding": 6, "labelColor": variable("text")}
