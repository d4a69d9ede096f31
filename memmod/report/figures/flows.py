"""Where the predictions of a class's images go once it is forgotten."""

from __future__ import annotations

from collections.abc import Sequence

from memmod.report.explanation import Flows, Row
from memmod.report.figures.chart import MANY, Chart, by_rows, percent_axis
from memmod.report.figures.heat import heat
from memmod.report.palette import variable

NETWORKS = ("before", "forgotten", "retrained without it")
_COLOURS = ("before", "forget", "retrained")


def flows(found: Flows, class_names: Sequence[str]) -> list[Chart]:
    """A matrix before and one after: rows are the classes of the images, columns what was predicted."""
    if len(class_names) > MANY:
        return []
    parts = (
        ("flows-before", "Predictions before", found.before, "by the original network"),
        ("flows-after", "Predictions with each class forgotten", found.after, "with the row's class forgotten"),
    )
    return [_matrix(name, title, matrix, how, class_names) for name, title, matrix, how in parts if matrix is not None]


def _matrix(name: str, title: str, matrix: Sequence[Row], how: str, class_names: Sequence[str]) -> Chart:
    own = [row[c] for c, row in enumerate(matrix) if row is not None and row[c] is not None]
    said = f" On the diagonal at most {max(own):.0%}." if own else ""
    description = f"Shares of the predictions on each class's test images, {how}.{said}"
    values = [
        {"row": class_names[r], "column": class_names[c], "value": value}
        for r, row in enumerate(matrix)
        for c, value in enumerate(row or [])
    ]
    spec = heat(
        values,
        "predicted as; a row for the images of each class",
        list(class_names),
        list(class_names),
        colour="heat",
        percent=True,
    )
    return Chart(name, title, description, spec)


def flow_choice() -> Chart:
    """Bars for the chosen class, whose rows the page fills in: predicted class, network, share."""
    spec = {
        "data": {"name": "rows"},
        **by_rows(46),
        "encoding": {
            "y": {
                "field": "class",
                "type": "nominal",
                "sort": None,
                "title": None,
                "axis": {"ticks": False, "domain": False, "labelPadding": 6, "labelColor": variable("text")},
                "scale": {"paddingInner": 0.3},
            },
            "yOffset": {"field": "network", "sort": list(NETWORKS)},
            "x": {
                "field": "share",
                "type": "quantitative",
                "axis": percent_axis("share of the test images"),
                "scale": {"domain": [0, 1]},
            },
        },
        "layer": [
            {
                "mark": {"type": "bar"},
                "encoding": {
                    "color": {
                        "field": "network",
                        "scale": {"domain": list(NETWORKS), "range": [variable(name) for name in _COLOURS]},
                    }
                },
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 4, "fontSize": 10},
                "encoding": {
                    "text": {
                        "condition": {"test": "datum.share >= 0.0005", "field": "share", "format": ".1%"},
                        "value": "",
                    }
                },
            },
        ],
        "padding": {"left": 0, "top": 4, "right": 46, "bottom": 4},
    }
    return Chart("flow-choice", "Where its images go", "", spec)
