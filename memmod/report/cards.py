"""What the page reads of the files that evaluations, audits and comparisons leave in run folders."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

Figure = float | None
_Figures = list[Figure]
_AtLeastOne = msgspec.Meta(min_length=1)


class Method(msgspec.Struct, frozen=True):
    """Accuracies of one way to forget, a figure for each selection: on what it forgets, and on all the rest."""

    method: str
    selections: list[list[int]]
    acc_forget: Annotated[_Figures, _AtLeastOne]
    acc_retain: Annotated[_Figures, _AtLeastOne]

    def __post_init__(self) -> None:
        if not len(self.selections) == len(self.acc_forget) == len(self.acc_retain):
            raise ValueError(f"the method {self.method!r} has not one figure for each selection")

    @property
    def worst_forget(self) -> Figure:
        return _of(max, self.acc_forget)

    @property
    def mean_forget(self) -> Figure:
        return mean(self.acc_forget)

    @property
    def worst_retain(self) -> Figure:
        return _of(min, self.acc_retain)

    @property
    def mean_retain(self) -> Figure:
        return mean(self.acc_retain)


class Scorecard(msgspec.Struct, frozen=True):
    """What `memmod evaluate` wrote for a run of unlearning: memmod, original, then controls."""

    images: int
    class_names: Annotated[list[str], _AtLeastOne]
    base_accuracy: Figure
    methods: Annotated[list[Method], msgspec.Meta(min_length=2)]
    sets: dict[str, list[Method]] = {}
    restandardised: Method | None = None

    def __post_init__(self) -> None:
        for method in self.methods:
            if len(method.selections) != len(self.class_names):
                raise ValueError(f"the method {method.method!r} has not one selection for each class")
        for methods in self.sets.values():
            for method in methods:
                if not all(0 <= c < len(self.class_names) for classes in method.selections for c in classes):
                    raise ValueError(f"a set of the method {method.method!r} names a class that is not there")


class ClassAccuracies(msgspec.Struct, frozen=True):
    """Accuracy on each class's test images: of a network, and of the one it was made from where that was measured."""

    class_names: Annotated[list[str], _AtLeastOne]
    now: _Figures
    original: _Figures | None = None
    forget: list[int] = []

    def __post_init__(self) -> None:
        for values in (self.now, self.original or self.now):
            if len(values) != len(self.class_names):
                raise ValueError(f"{len(values)} accuracies for {len(self.class_names)} classes")
        if not all(0 <= c < len(self.class_names) for c in self.forget):
            raise ValueError("forget names a class that is not there")

    def mean_retain(self, values: _Figures | None) -> Figure:
        """Over the classes that stay."""
        return mean(v for c, v in enumerate(values or []) if c not in self.forget)

    def worst_forget(self, values: _Figures | None) -> Figure:
        """The highest accuracy that an erased class keeps."""
        return _of(max, [v for c, v in enumerate(values or []) if c in self.forget])


class AuditRow(msgspec.Struct, frozen=True):
    """One figure of one attack; `value` is None, and `reason` says why, where there is none."""

    attack: str
    figure: str
    level: str
    value: Figure
    oracles: list[Figure]
    oracle_interval: Annotated[_Figures, msgspec.Meta(min_length=2, max_length=2)] | None
    held_out: Figure
    original: Figure
    control: Figure
    verdict: str
    distance: Figure
    broken: bool
    reason: str

    @property
    def judgement(self) -> str:
        """As the audit's own table words it."""
        by = f" by {self.distance:.3f}" if self.verdict in ("worse", "better") and self.distance is not None else ""
        return f"broken ({self.verdict}{by})" if self.broken else f"{self.verdict}{by}"


class Audit(msgspec.Struct, frozen=True):
    """What `memmod audit` wrote: every figure beside those of networks that never saw the classes."""

    data: str
    forgotten: Annotated[list[str], _AtLeastOne]
    forget: list[int]
    quick: bool
    threshold: float
    seed: int
    oracles: int
    counts: dict[str, int]
    rows: list[AuditRow]
    versions: dict[str, Any]

    @property
    def judged(self) -> int:
        """How many figures have a verdict."""
        return sum(count for verdict, count in self.counts.items() if verdict != "not judged")

    @property
    def worse(self) -> int:
        """How many tell more of the classes than networks that never saw them."""
        return self.counts.get("worse", 0)


class Compared(msgspec.Struct, frozen=True):
    """A method's figures on one class, or why there are none."""

    c: int
    figures: dict[str, Figure]
    failed: str | None


class ComparedMethod(msgspec.Struct, frozen=True):
    """A method with one choice of settings; seconds and bytes are sums over the classes."""

    method: str
    settings: str
    classes: list[Compared]
    seconds: Figure = None
    tuning_seconds: Figure = None
    bytes: Figure = None

    def mean(self, figure: str) -> Figure:
        """Over the classes that have it."""
        return mean(entry.figures.get(figure) for entry in self.classes)

    @property
    def worst(self) -> Figure:
        """The highest accuracy left on a forgotten class."""
        return _of(max, [entry.figures.get("Acc_f") for entry in self.classes])

    @property
    def failed(self) -> list[str]:
        """Why classes have no figures, each reason once."""
        return list(dict.fromkeys(entry.failed for entry in self.classes if entry.failed is not None))


class Comparison(msgspec.Struct, frozen=True):
    """What `memmod compare` wrote."""

    data: str
    classes: list[str]
    seeds: int
    quick: bool
    versions: dict[str, Any]
    lines: list[ComparedMethod]


def mean(values: Iterable[Figure]) -> Figure:
    """The mean of those that are there; None without any."""
    there = [value for value in values if value is not None]
    return math.fsum(there) / len(there) if there else None


def _of(choose: Any, values: Iterable[Figure]) -> Figure:
    return choose((value for value in values if value is not None), default=None)
