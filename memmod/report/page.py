"""The page: one self-contained HTML file, without scripts and without anything loaded from elsewhere."""

from __future__ import annotations

import os
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from memmod.files.atomic import write_atomically
from memmod.report.bars import bars
from memmod.report.data import Report
from memmod.report.pictures import CLOSED, INK, picture

_TEMPLATES = "templates"


def render(report: Report) -> str:
    """The report as an HTML document; every value from outside is escaped."""
    environment = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["points"] = points
    return environment.get_template("page.html").render(
        report=report,
        style=Markup(_template("style.css")),
        bars=bars,
        picture=picture,
        closed_below=CLOSED,
        ink="rgb({}, {}, {})".format(*INK),
    )


def write_report(report: Report, path: str | os.PathLike[str]) -> None:
    """Write the page to `path`, whole or not at all."""
    write_atomically(path, render(report).encode())


def percent(value: float) -> str:
    """0.987 as 98.7 %."""
    return f"{100 * value:.1f} %"


def points(value: float) -> str:
    """A difference of two shares in percentage points, with its sign: -0.004 as −0.4."""
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def _template(name: str) -> str:
    return resources.files("memmod.report").joinpath(_TEMPLATES, name).read_text(encoding="utf-8")
