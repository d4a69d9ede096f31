"""How alike the classes' rows are: a matrix, and the tree of it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from memmod.report.explanation import Atlas, Row
from memmod.report.figures.chart import MANY, Chart, rows
from memmod.report.figures.heat import heat
from memmod.report.palette import variable

_LEAF = 24


def similarity(atlas: Atlas, class_names: Sequence[str]) -> list[Chart]:
    """The matrices and the tree; none where there are too many classes to draw all pairs."""
    if not 1 < len(class_names) <= MANY:
        return []
    order = atlas.order or list(range(len(class_names)))
    found = []
    if atlas.linkage is not None and atlas.order is not None:
        found.append(_tree(atlas.linkage, order, class_names))
    kinds = (
        ("jaccard", "Similarity of the rows: weighted Jaccard", atlas.jaccard),
        ("rank", "Similarity of the rows: Spearman's rank correlation", atlas.rank),
    )
    return found + [_matrix(name, title, m, order, class_names) for name, title, m in kinds if m is not None]


def _matrix(name: str, title: str, matrix: Sequence[Row], order: Sequence[int], class_names: Sequence[str]) -> Chart:
    names = [class_names[c] for c in order]
    pairs = [(matrix[a][b], a, b) for a in order for b in order if a < b and matrix[a] and matrix[a][b] is not None]
    said, highest = "", 0.1
    if pairs:
        value, a, b = max(pairs)
        highest = max(highest, value)
        said = f" Most alike are {class_names[a]} and {class_names[b]}, {value:.2f}."
    values = [
        {"row": class_names[a], "column": class_names[b], "value": None if a == b else (matrix[a] or {b: None})[b]}
        for a in order
        for b in order
    ]
    return Chart(
        name,
        title,
        f"{title}, all pairs of classes.{said}",
        heat(values, None, names, names, colour="cool", highest=highest),
    )


def _tree(linkage: Sequence[Sequence[float]], order: Sequence[int], class_names: Sequence[str]) -> Chart:
    """scipy's linkage as lines: a join of two parts is a bracket at its distance."""
    leaves = len(order)
    places = {c: place + 0.5 for place, c in enumerate(order)}
    heights = dict.fromkeys(range(leaves), 0.0)
    lines = []
    for step, (a, b, distance, _) in enumerate(linkage):
        a, b = int(a), int(b)
        for part in (a, b):
            lines.append({"x": heights[part], "x2": distance, "y": places[part], "y2": places[part]})
        lines.append({"x": distance, "x2": distance, "y": places[a], "y2": places[b]})
        places[leaves + step], heights[leaves + step] = (places[a] + places[b]) / 2, distance
    names = json.dumps([class_names[c] for c in order])
    a, b, distance, _ = min(linkage, key=lambda join: join[2])
    description = (
        f"Tree of the classes by 1 minus the similarity of their rows, from {distance:.2f}, where "
        f"{class_names[int(a)]} and {class_names[int(b)]} join, to {max(join[2] for join in linkage):.2f}."
        if max(a, b) < leaves
        else "Tree of the classes by 1 minus the similarity of their rows."
    )
    spec = {
        "data": rows(lines),
        "height": _LEAF * leaves,
        "mark": {"type": "rule", "color": variable("text"), "strokeWidth": 1.5},
        "encoding": {
            "x": {
                "field": "x",
                "type": "quantitative",
                "axis": {"title": "1 − weighted Jaccard", "tickCount": 4},
                "scale": {"zero": True},
            },
            "x2": {"field": "x2"},
            "y": {
                "field": "y",
                "type": "quantitative",
                "scale": {"domain": [0, leaves], "reverse": True, "nice": False},
                "axis": {
                    "title": None,
                    "values": [place + 0.5 for place in range(leaves)],
                    "labelExpr": f"{names}[floor(datum.value)]",
                    "labelOverlap": False,
                    "grid": False,
                    "ticks": False,
                    "domain": False,
                    "labelColor": variable("text"),
                },
            },
            "y2": {"field": "y2"},
        },
    }
    return Chart("tree", "Which classes close the same units", description, spec)
