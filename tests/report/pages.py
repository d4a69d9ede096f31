"""Runs as plain values, and pages taken apart."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import msgspec
import numpy as np

from memmod.report import HeldOut, LayerNote, Memory, Report, Run, Table, render
from memmod.report.cards import (
    Audit,
    AuditRow,
    ClassAccuracies,
    Compared,
    ComparedMethod,
    Comparison,
    Method,
    Scorecard,
)
from memmod.report.explanation import Explanation
from tests.report.explanations import explanation

# What would break out of markup, attributes, scripts and lines of JavaScript.
HOSTILE = (
    "cat",
    'dog & <b>"owl"</b>',
    "</script><script>alert(1)</script>",
    "eel\u2028'\u2029`${1}",
    "<!--x",
    "]]>&lt;",
)


def scorecard(names: tuple[str, ...], seed: int = 0) -> Scorecard:
    """Accuracies in steps of a thousandth, with sets of two."""
    generator, classes = np.random.default_rng(seed), len(names)

    def method(name: str, selections: list[list[int]], low: float) -> Method:
        forget, retain = generator.integers(0, 400, (2, len(selections))) / 1000
        return Method(name, selections, (low * forget / 0.4).tolist(), (0.6 + retain).tolist())

    singles = [[c] for c in range(classes)]
    methods = [method(name, singles, low) for name, low in (("memmod", 0.1), ("original", 0.9), ("logit mask", 0.0))]
    pairs = [[0, c] for c in range(1, min(classes, 4))]
    sets = {"2": [method(name, pairs, low) for name, low in (("memmod", 0.1), ("original", 0.9))]} if pairs else {}
    return Scorecard(1000, list(names), 0.9, methods, sets, method("statistics anew", singles, 0.1))


def audit(names: tuple[str, ...], c: int = 0) -> Audit:
    """One figure of each verdict."""

    def row(figure: str, value: float | None, verdict: str, broken: bool = False, reason: str = "") -> AuditRow:
        judged = verdict != "not judged"
        interval = [0.2, 0.4] if judged else None
        return AuditRow("probes", figure, "L1", value, [0.3], interval, 0.3, 0.9, 0.8, verdict, 0.25, broken, reason)

    rows = [
        row("recall", 0.65, "worse"),
        row("balanced", 0.7, "worse", broken=True),
        row("mean", 0.3, "within"),
        row("", None, "not judged", reason="no <BatchNorm>"),
    ]
    counts = {"worse": 1, "broken": 1, "within": 1, "not judged": 1}
    return Audit("drawn", [names[c]], [c], True, 0.3, 0, 3, counts, rows, {"python": "3"})


def comparison(names: tuple[str, ...]) -> Comparison:
    """memmod, and a method that failed on a class."""
    figures = {"Acc_f": 0.0, "Acc_r": 0.95, "total variation": 0.1, "probe excess": -0.02}
    lines = [
        ComparedMethod("memmod", "one round", [Compared(0, figures, None)], 12.0, 0.0, 4096.0),
        ComparedMethod("scrub", "tuned", [Compared(0, {}, "diverged at step <3>")]),
    ]
    return Comparison("drawn", [names[0]], 2, True, {}, lines)


def run(names: tuple[str, ...] = ("cat", "dog", "eel"), explained: bool = True, **changes: Any) -> Run:
    """A run of unlearning with every part; `explained=False` leaves out what explain finds."""
    generator = np.random.default_rng(0)
    told = msgspec.convert(explanation(list(names)), Explanation) if explained else None
    parts: dict[str, Any] = {
        "title": "ResNet",
        "folder": "runs/drawn",
        "command": "unlearn",
        "model": "resnet",
        "data": "drawn",
        "class_names": names,
        "base": "runs/base",
        "scorecard": scorecard(names),
        "held_out": HeldOut([0.01] * len(names), 0.9, 0.91),
        "memories": [Memory("stem.conv", generator.random((len(names), 7)))],
        "notes": [
            LayerNote("block.fc<1>", "gated", "folded with <bn>"),
            LayerNote("head", "skipped", "classifier head"),
        ],
        "explanation": told,
        "audits": [audit(names)],
        "comparison": comparison(names),
        "facts": {"unlearning": "7 s"},
        "tables": [Table("Settings of memmod unlearn", {"lr": 0.1, "skip": [], "preset": "<default>"})],
    }
    return Run(**{**parts, **changes})


def erased(names: tuple[str, ...] = ("cat", "dog", "eel"), **changes: Any) -> Run:
    """A run of erase."""
    values = [0.9] * len(names)
    found = ClassAccuracies(list(names), [0.0, *values[1:]], values, [0])
    parts = {"command": "erase", "scorecard": None, "held_out": None, "memories": (), "notes": (), "comparison": None}
    return run(names, **{"explained": False, "by_class": found, **parts, **changes})


def page(*runs: Run) -> str:
    """The page of runs."""
    return render(Report("A page", runs, {"seed": "0"} if len(runs) > 1 else {}))


class Parsed(HTMLParser):
    """The tags of a page with their attributes, and its text outside of scripts and styles; every tag is closed."""

    void = {"meta", "link", "img", "br", "col", "input"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        return re.sub(r"[ \n\t]+", " ", " ".join(self.parts))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif "style" not in self.open:
            self.parts.append(data)


def data_of(html: str) -> list[dict[str, Any]]:
    """What the page's script reads, run by run."""
    return [
        json.loads(text) for text in re.findall(r'<script type="application/json" class="data">(.*?)</script>', html)
    ]
