"""The page: one self-contained HTML file, with everything that it needs inside of it."""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
from collections.abc import Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from memmod.files.atomic import write_atomically
from memmod.ops.gating import CLOSED
from memmod.report import figures, library, palette, words
from memmod.report.data import Report, Run
from memmod.report.figures.atlas import layer_choice
from memmod.report.figures.flows import flow_choice
from memmod.report.payload import embedded, payload
from memmod.report.pictures import INK, pictures

_TEMPLATES = "templates"
# In this order they are one script.
_SCRIPTS = ("elements.js", "charts.js", "chooser.js", "selection.js", "gallery.js", "start.js")


def render(report: Report) -> str:
    """The report as an HTML document; every value from outside is escaped.

    Raises:
        RunError: the charts' library is not installed.
    """
    environment = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=words.percent, points=words.points, figure=words.figure, setting=words.setting)
    environment.filters["shell"] = shlex.quote
    # in a function of its own: the library's short names are global ones
    scripts = [library.bundle(), "(() => {\n" + "\n".join(map(_template, _SCRIPTS)) + "})();"]
    return environment.get_template("page.html").render(
        report=report,
        style=Markup(palette.style() + _template("style.css")),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts),
        charts=[{chart.name: chart for chart in figures.charts_of(run)} for run in report.runs],
        data=[Markup(embedded(_data(run))) for run in report.runs],
        pictures=pictures,
        names_of=_names_of,
        difference=_difference,
        closed_below=CLOSED,
        ink="rgb({}, {}, {})".format(*INK),
        many=figures.MANY,
    )


def write_report(report: Report, path: str | os.PathLike[str]) -> None:
    """Write the page of `report` to `path`, whole or not at all. Raises RunError as `render` does."""
    write_atomically(path, render(report).encode())


def _data(run: Run) -> dict[str, Any]:
    charts = [*figures.charts_of(run), flow_choice(), layer_choice()]
    return {**payload(run), "charts": {chart.name: chart.at("container") for chart in charts}}


def _names_of(classes: Sequence[int], class_names: Sequence[str]) -> str:
    return ", ".join(class_names[c] for c in classes)


def _difference(now: float | None, before: float | None) -> float | None:
    return None if now is None or before is None else now - before


def _policy(scripts: list[str]) -> str:
    """What the browser lets the page do: nothing is loaded, and no script runs but those that stand here."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"


def _template(name: str) -> str:
    return resources.files("memmod.report").joinpath(_TEMPLATES, name).read_text(encoding="utf-8")
