"""Figures beside intervals: an audit's, and how faithful maps are."""

from __future__ import annotations

from memmod.report.cards import Audit, AuditRow
from memmod.report.explanation import Faithfulness
from memmod.report.figures.chart import Chart, height, rows
from memmod.report.palette import variable

_SHOWN = 12


def outside(audit: Audit, number: int) -> Chart | None:
    """The figures that tell most more of the class than networks that never saw it; None without any."""
    worse = [row for row in audit.rows if row.verdict == "worse" and not row.broken and _is_share(row)]
    worse = sorted(worse, key=lambda row: -(row.distance or 0))[:_SHOWN]
    if not worse:
        return None
    values = [
        {
            "figure": f"{row.attack}: {row.figure}",
            "low": max(0.0, row.oracle_interval[0]),
            "high": min(1.0, row.oracle_interval[1]),
            "memmod": row.value,
            "original": row.original,
        }
        for row in worse
    ]
    kinds, colours = ["original", "memmod"], [variable("before"), variable("forget")]
    names = {"ticks": False, "domain": False, "labelPadding": 8, "labelColor": variable("text")}
    spec = {
        "data": rows(values),
        "height": height(len(values), 20),
        "encoding": {"y": {"field": "figure", "type": "nominal", "sort": None, "title": None, "axis": names}},
        "layer": [
            {
                # with an outline, so that an interval of no width is seen
                "mark": {"type": "bar", "height": {"band": 0.5}, "color": variable("cool"), "stroke": variable("cool")},
                "encoding": {
                    "x": {
                        "field": "low",
                        "type": "quantitative",
                        "scale": {"domain": [0, 1]},
                        "axis": {"title": "bar: retrained networks"},
                    },
                    "x2": {"field": "high"},
                },
            },
            {
                "transform": [{"fold": kinds, "as": ["network", "value"]}],
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
                "encoding": {
                    "x": {"field": "value", "type": "quantitative"},
                    "color": {"field": "network", "scale": {"domain": kinds, "range": colours}},
                },
            },
        ],
    }
    names = ", ".join(audit.forgotten)
    description = f"The {len(worse)} figures of the audit of {names} that lie furthest outside of the interval."
    return Chart(f"audit-{number}", f"Audit of {names}: furthest outside", description, spec)


def _is_share(row: AuditRow) -> bool:
    """Whether a figure has a place between 0 and 1, beside an interval; steps and distances beyond have a table."""
    if row.oracle_interval is None or None in (row.value, *row.oracle_interval):
        return False
    return all(0 <= value <= 1 for value in (row.value, row.original or 0.0)) and row.oracle_interval[0] <= 1


def faithfulness(found: Faithfulness) -> Chart:
    """Insertion and deletion of each kind of map, with their intervals."""
    kinds = {"insertion, higher is better": "insertion", "deletion, lower is better": "deletion"}
    values = []
    for row in found.rows:
        for kind, name in kinds.items():
            low, high = getattr(row, f"{name}_interval")
            values.append({"map": row.map, "kind": kind, "value": getattr(row, name), "low": low, "high": high})
    y = {
        "field": "map",
        "type": "nominal",
        "sort": None,
        "title": None,
        "axis": {"ticks": False, "domain": False, "labelColor": variable("text")},
    }
    colour = {
        "field": "kind",
        "scale": {"domain": list(kinds), "range": [variable("retain"), variable("forget")]},
    }
    spec = {
        "data": rows(values),
        "height": height(len(found.rows), 32),
        "encoding": {"y": y, "yOffset": {"field": "kind", "sort": list(kinds)}, "color": colour},
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {
                    "x": {
                        "field": "low",
                        "type": "quantitative",
                        "scale": {"domain": [0, 1]},
                        "axis": {"title": "area under the curve"},
                    },
                    "x2": {"field": "high"},
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                "encoding": {"x": {"field": "value", "type": "quantitative"}},
            },
        ],
    }
    description = f"Insertion and deletion of {len(found.rows)} kinds of maps over {found.images} images."
    return Chart("faithfulness", "How faithful the maps are", description, spec)
