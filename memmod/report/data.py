"""What a report shows, as plain values: nothing here knows models or data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from memmod.report.cards import Audit, ClassAccuracies, Comparison, Scorecard
from memmod.report.explanation import Explanation


@dataclass(frozen=True)
class Memory:
    """The gates of one layer: `gates` `[C, K]` in [0, 1], 1 open, 0 closed."""

    layer: str
    gates: np.ndarray


@dataclass(frozen=True)
class LayerNote:
    """One line of a model's summary: what became of a `layer` (`outcome`), and the `reason`."""

    layer: str
    outcome: str
    reason: str = ""


@dataclass(frozen=True)
class HeldOut:
    """What a round of unlearning found on held-out training images.

    Args:
        acc_forget: accuracy on each class while it is selected.
        mean_retain: mean accuracy on the others.
        base_retain: that of the base, with nothing selected.
    """

    acc_forget: Sequence[float]
    mean_retain: float
    base_retain: float


@dataclass(frozen=True)
class Table:
    """`rows` of names and values under a `title`: settings, versions, facts."""

    title: str
    rows: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One run. Parts that its folder does not hold are None or empty, and the page says how to make them.

    Args:
        title: what the page calls the network.
        folder: the run's folder, as commands name it.
        base: the base's folder, if the run has one.
        command: what made the run: unlearn, erase, train, ...
        model: the name of the network.
        data: the name of the data set.
        class_names: C names; none where no file of the run says them.
        scorecard: of a run of unlearning, on test images.
        held_out: of a run of unlearning, on held-out training images.
        by_class: of a network that forgets nothing when it is asked: erased, or a base.
        memories: the gates of each layer.
        notes: what was gated, folded, replaced and skipped.
        explanation: what `memmod explain` wrote.
        audits: what `memmod audit` wrote, each of some classes.
        comparison: what `memmod compare` wrote.
        facts: short lines above the parts, by name.
        tables: settings and versions, at the end.
    """

    title: str
    folder: str
    command: str
    model: str
    data: str
    class_names: Sequence[str]
    base: str | None = None
    scorecard: Scorecard | None = None
    held_out: HeldOut | None = None
    by_class: ClassAccuracies | None = None
    memories: Sequence[Memory] = ()
    notes: Sequence[LayerNote] = ()
    explanation: Explanation | None = None
    audits: Sequence[Audit] = ()
    comparison: Comparison | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Report:
    """A whole page with a `title`: one of `runs`, or several of the same data; `facts` stand above them, by name."""

    title: str
    runs: Sequence[Run]
    facts: Mapping[str, str] = field(default_factory=dict)
