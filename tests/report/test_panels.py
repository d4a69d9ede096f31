"""Curves in panels: well-formed, each value where the scale says, every text escaped."""

from __future__ import annotations

import math
from xml.etree import ElementTree as ET

import pytest

from memmod.report.panels import HEIGHT, WIDTH, Curve, Panel, panels, ticks

SVG = "{http://www.w3.org/2000/svg}"
PLACES = (0.05, 0.1, 0.2)


def draw(first=(-5.0, -2.5, -1.0), second=(-10.0, -6.0, -3.0), band=(-0.5, 0.5), name="erased") -> ET.Element:
    curves = [Curve(name, first), Curve("from <scratch> & more", second)]
    content = [Panel("points", curves, band), Panel("excess", [Curve(c.name, (0.0, 0.1, 0.2)) for c in curves], (0, 0))]
    return ET.fromstring(panels("a <title>", "budget", PLACES, content, "range & all"))


def texts(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def points(group: ET.Element, number: int) -> list[tuple[float, float]]:
    line = group.findall(f"{SVG}polyline")[number]
    return [tuple(map(float, pair.split(","))) for pair in line.get("points", "").split()]


def test_values_lie_where_the_scale_says() -> None:
    left, right = draw().findall(f"{SVG}g")
    marks = {}
    for mark in left.findall(f"{SVG}text"):
        if mark.get("text-anchor") == "end":
            marks[float((mark.text or "").replace("−", "-"))] = float(mark.get("y")) - 4
    (low, bottom), (high, top) = min(marks.items()), max(marks.items())
    for number, values in enumerate(((-5.0, -2.5, -1.0), (-10.0, -6.0, -3.0))):
        for (_x, y), value in zip(points(left, number), values, strict=True):
            assert y == pytest.approx(bottom + (value - low) / (high - low) * (top - bottom), abs=0.15)
    xs = [x for x, _y in points(left, 0)]
    # shares of one axis, not steps
    assert (xs[1] - xs[0]) / (xs[2] - xs[0]) == pytest.approx(1 / 3, abs=0.01)
    assert [x for x, _y in points(right, 0)] == pytest.approx([x + WIDTH / 2 for x in xs])
    band = left.find(f"{SVG}rect")
    assert float(band.get("y")) == pytest.approx(bottom + (0.5 - low) / (high - low) * (top - bottom), abs=0.15)
    assert float(band.get("height")) == pytest.approx((bottom - top) / (high - low), abs=0.15)
    # a range of one value is a line that can be seen
    assert float(right.find(f"{SVG}rect").get("height")) == 2.0


def test_everything_is_inside_and_every_text_is_there() -> None:
    root = draw(name="<b>&")
    assert {"a <title>", "<b>&", "from <scratch> & more", "range & all", "points", "excess", "budget"} <= set(
        texts(root)
    )
    assert {"5 %", "10 %", "20 %"} <= set(texts(root))
    for element in root.iter():
        for name, most in (("x", WIDTH), ("x1", WIDTH), ("x2", WIDTH), ("cx", WIDTH), ("y", HEIGHT), ("cy", HEIGHT)):
            assert 0 <= float(element.get(name, 0)) <= most
    # one colour and one dash for each curve, in both panels
    left, right = root.findall(f"{SVG}g")
    for number in range(2):
        one, other = (group.findall(f"{SVG}polyline")[number] for group in (left, right))
        assert (one.get("stroke"), one.get("stroke-dasharray")) == (other.get("stroke"), other.get("stroke-dasharray"))
    strokes = {line.get("stroke") for line in left.findall(f"{SVG}polyline")}
    assert len(strokes) == 2


def test_what_has_no_value_is_left_out() -> None:
    left = draw(first=(-5.0, math.nan, -1.0)).find(f"{SVG}g")
    assert len(points(left, 0)) == 2 and len(points(left, 1)) == 3
    one = panels("t", "a", (0.1,), [Panel("p", [Curve("c", (1.0,))], (0.0, 0.0))], "b")
    assert len(points(ET.fromstring(one).find(f"{SVG}g"), 0)) == 1
    with pytest.raises(ValueError, match=r"\[0.1\]"):
        panels("t", "a", (0.1,), [Panel("p", [Curve("c", (1.0, 2.0))], (0.0, 0.0))], "b")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-3.0, 0.1, [-3.0, -2.0, -1.0, 0.0, 1.0]),
        (0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (-0.06, 0.014, [-0.06, -0.04, -0.02, 0.0, 0.02]),
        (0.0, 0.0, [-0.5, -0.25, 0.0, 0.25, 0.5]),
    ],
)
def test_marks_are_round_and_span_the_values(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)
