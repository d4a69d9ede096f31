"""Curves in panels side by side, over one axis, as an SVG picture that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

WIDTH, HEIGHT = 960, 430
# Around the plot of a panel: room for the values, the title, the next panel, and the labels below.
_LEFT, _TOP, _RIGHT, _BOTTOM = 74, 106, 24, 62
_COLOURS = ("#c23c17", "#1f6aa5", "#3d7a2a", "#7a4b94")
_DASHES = ("none", "7 4", "2 3", "9 3 2 3")
_PAPER, _TEXT, _SOFT, _GRID, _BAND = "#ffffff", "#1d2127", "#565d68", "#e4e1da", "#d9d4c7"
_FONT = "system-ui, 'Segoe UI', 'Liberation Sans', Arial, sans-serif"
_TICKS = 5


@dataclass(frozen=True)
class Curve:
    """A name, and a value for each place on the axis; NaN where there is none."""

    name: str
    values: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """Curves that share a scale.

    Args:
        title: above it.
        curves: one colour and one dash each, the same in every panel.
        band: the lowest and highest value of a range to see them against.
    """

    title: str
    curves: Sequence[Curve]
    band: tuple[float, float]


def panels(title: str, axis: str, places: Sequence[float], content: Sequence[Panel], band: str) -> bytes:
    """The picture as an SVG file; every text from outside is escaped.

    Args:
        title: of the picture.
        axis: what `places` are.
        places: shares of one, at least one, in ascending order.
        content: the panels, from left to right, each with a value per place in every curve.
        band: the name of the panels' bands.

    Raises:
        ValueError: no place, or a curve with another number of values.
    """
    if not places or any(len(curve.values) != len(places) for panel in content for curve in panel.curves):
        raise ValueError(f"every curve needs a value for each of the places {list(places)}, and there must be one")
    root = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {WIDTH} {HEIGHT}",
            "width": str(WIDTH),
            "height": str(HEIGHT),
            "role": "img",
            "font-family": _FONT,
        },
    )
    ET.SubElement(root, "title").text = title
    _shape(root, "rect", width=WIDTH, height=HEIGHT, fill=_PAPER)
    _text(root, 20, 30, title, size=18, weight="600")
    _legend(root, [curve.name for curve in content[0].curves], band)
    width = WIDTH / len(content)
    for number, panel in enumerate(content):
        _panel(ET.SubElement(root, "g"), number * width, width, axis, places, panel)
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def ticks(low: float, high: float, count: int = _TICKS) -> list[float]:
    """About `count` round numbers that span `low` to `high`, from at most the one to at least the other."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _panel(group: ET.Element, x: float, width: float, axis: str, places: Sequence[float], panel: Panel) -> None:
    left, right, top, bottom = x + _LEFT, x + width - _RIGHT, _TOP, HEIGHT - _BOTTOM
    values = [value for curve in panel.curves for value in curve.values if math.isfinite(value)]
    marks = ticks(min([*values, *panel.band, 0.0]), max([*values, *panel.band, 0.0]))
    span = places[-1] - places[0]

    def across(place: float) -> float:
        # half a step of room on either side
        share = 0.5 if span == 0 else 0.06 + 0.88 * (place - places[0]) / span
        return left + share * (right - left)

    def up(value: float) -> float:
        return bottom - (value - marks[0]) / (marks[-1] - marks[0]) * (bottom - top)

    _text(group, left, top - 12, panel.title, size=14, weight="600")
    for mark in marks:
        _shape(group, "line", x1=left, x2=right, y1=up(mark), y2=up(mark), stroke=_GRID)
        _text(group, left - 8, up(mark) + 4, _signed(mark), size=13, anchor="end", fill=_SOFT)
    low, high = panel.band
    # a range of one value stays visible
    height = max(up(low) - up(high), 2)
    _shape(group, "rect", x=left, y=up(high), width=right - left, height=height, fill=_BAND)
    _shape(group, "line", x1=left, x2=right, y1=up(0), y2=up(0), stroke=_SOFT)
    for place in places:
        _shape(group, "line", x1=across(place), x2=across(place), y1=bottom, y2=bottom + 5, stroke=_SOFT)
        _text(group, across(place), bottom + 21, f"{100 * place:g} %", size=13, anchor="middle", fill=_SOFT)
    _text(group, (left + right) / 2, bottom + 44, axis, size=13, anchor="middle")
    for number, curve in enumerate(panel.curves):
        points = [(across(p), up(v)) for p, v in zip(places, curve.values, strict=True) if math.isfinite(v)]
        _line(group, points, number)
        _dots(group, points, number)


def _line(group: ET.Element, points: Sequence[tuple[float, float]], number: int) -> None:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    line = _shape(group, "polyline", points=path, fill="none", stroke=_COLOURS[number % len(_COLOURS)])
    line.set("stroke-width", "2.5")
    line.set("stroke-dasharray", _DASHES[number % len(_DASHES)])


def _dots(group: ET.Element, points: Sequence[tuple[float, float]], number: int) -> None:
    for x, y in points:
        _shape(group, "circle", cx=x, cy=y, r=4.5, fill=_COLOURS[number % len(_COLOURS)])


def _legend(root: ET.Element, names: Sequence[str], band: str) -> None:
    x = 20.0
    for number, name in enumerate(names):
        _line(root, [(x, 52), (x + 34, 52)], number)
        _dots(root, [(x + 17, 52)], number)
        _text(root, x + 44, 57, name, size=14)
        x += 44 + 8.5 * len(name) + 26
    _shape(root, "rect", x=x, y=44, width=34, height=16, fill=_BAND)
    _text(root, x + 44, 57, band, size=14)


def _signed(value: float) -> str:
    return "0" if value == 0 else f"{value:+g}".replace("-", "−")


def _text(
    parent: ET.Element,
    x: float,
    y: float,
    text: str,
    size: int,
    weight: str = "400",
    anchor: str = "start",
    fill: str = _TEXT,
) -> None:
    element = _shape(parent, "text", x=x, y=y, fill=fill)
    for name, value in (("font-size", str(size)), ("font-weight", weight), ("text-anchor", anchor)):
        element.set(name, value)
    element.text = text


def _shape(parent: ET.Element, kind: str, **attributes: float | str) -> ET.Element:
    values = {name: value if isinstance(value, str) else f"{value:.1f}" for name, value in attributes.items()}
    return ET.SubElement(parent, kind, values)
