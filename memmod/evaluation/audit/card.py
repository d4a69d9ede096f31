"""What an audit found, a row for each figure, as a table, Markdown or JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from memmod.evaluation.attacks.attack import Measure
from memmod.evaluation.audit.interval import UNJUDGED, WITHIN, WORSE, OracleInterval, Verdict

HEADINGS = ("attack", "figure", "level", "memmod", "oracles", "held out", "original", "logit mask", "verdict")


@dataclass(frozen=True)
class Row:
    """One figure of one attack.

    Args:
        attack: its name.
        figure: the figure's name; "" where the attack says nothing of the suspect.
        level: what the attacker has.
        measure: of the suspect.
        oracles: the oracles' figures.
        held_out: of the oracle that the interval is not made from.
        original: of the network before unlearning.
        control: of the trivial rival.
        others: of further networks that the suspect stands beside, by their names; None where one has no such figure.
        verdict: where the suspect's figure lies.
        broken: the held-out oracle lies outside of the interval, so that the attack cannot tell.
        reason: why there is no figure.
    """

    attack: str
    figure: str
    level: str
    measure: Measure | None
    oracles: tuple[float, ...]
    held_out: float | None
    original: float | None
    control: float | None
    verdict: Verdict
    broken: bool
    reason: str
    others: dict[str, float | None] = field(default_factory=dict)

    def cells(self, others: Sequence[str] = ()) -> tuple[str, ...]:
        """As `AuditCard.headings` calls them, with the columns of these other networks."""
        if self.measure is None:
            blank = [""] * (len(HEADINGS) - 4 + len(others))
            return (self.attack, "", self.level, *blank, self.reason)
        oracles = ""
        if self.oracles:
            mean = math.fsum(self.oracles) / len(self.oracles)
            oracles = f"{number(mean)} ({number(min(self.oracles))}-{number(max(self.oracles))})"
        figures = (self.held_out, self.original, self.control, *(self.others.get(name) for name in others))
        return (
            self.attack,
            self.figure,
            self.level,
            number(self.measure.value),
            oracles,
            *(number(value) for value in figures),
            self.words(),
        )

    def words(self) -> str:
        """The verdict in words."""
        said = self.verdict.word
        if said not in (WITHIN, UNJUDGED):
            said = f"{said} by {number(self.verdict.distance)}"
        return f"broken ({said})" if self.broken else said

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        measure = self.measure
        bounds = None
        if measure is not None and len(self.oracles) >= 2:
            bounds = list(OracleInterval(self.oracles, measure.resolution).bounds)
        return {
            "attack": self.attack,
            "figure": self.figure,
            "level": self.level,
            "value": None if measure is None else measure.value,
            "bootstrap": None if measure is None or measure.interval is None else list(measure.interval),
            "oracles": list(self.oracles),
            "oracle_interval": bounds,
            "held_out": self.held_out,
            "original": self.original,
            "control": self.control,
            "verdict": self.verdict.word,
            "distance": self.verdict.distance,
            "broken": self.broken,
            "reason": self.reason,
            **({"others": self.others} if self.others else {}),
        }


@dataclass(frozen=True)
class AuditCard:
    """Every figure of an audit.

    Args:
        forget: the classes that should be gone.
        rows: in the order of the attacks.
        oracles: how many the intervals are made from.
        others: names of further networks that the suspect stands beside, a column each.
    """

    forget: tuple[int, ...]
    rows: tuple[Row, ...]
    oracles: int
    others: tuple[str, ...] = ()

    @property
    def headings(self) -> tuple[str, ...]:
        """Of the table's columns."""
        return (*HEADINGS[:-1], *self.others, HEADINGS[-1])

    def cells(self) -> list[tuple[str, ...]]:
        """The table, a row for each figure."""
        return [row.cells(self.others) for row in self.rows]

    def counts(self) -> dict[str, int]:
        """How many figures got each verdict; those of broken attacks count as broken."""
        words = ["broken" if row.broken else row.verdict.word for row in self.rows if row.measure is not None]
        return {word: words.count(word) for word in dict.fromkeys(words)}

    def worse(self) -> list[Row]:
        """The figures by which the suspect tells more of the class than an oracle would."""
        return [row for row in self.rows if row.verdict.word == WORSE and not row.broken]

    @property
    def summary(self) -> str:
        """One sentence; a broken attack is one that puts the held-out oracle outside of the others' interval."""
        judged = [row for row in self.rows if row.measure is not None and row.verdict.word != UNJUDGED]
        counts = ", ".join(f"{count} {word}" for word, count in self.counts().items())
        return f"{len(judged)} figures judged by {self.oracles} oracles: {counts}"

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "forget": list(self.forget),
            "oracles": self.oracles,
            "counts": self.counts(),
            **({"others": list(self.others)} if self.others else {}),
            "rows": [row.to_dict() for row in self.rows],
        }

    def markdown(self) -> str:
        """The table in Markdown, with the summary above it."""
        return f"{self.summary}.\n\n{markdown_table(self.headings, self.cells())}\n"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; a bar in a cell is escaped."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def number(value: float | None) -> str:
    """Three digits behind the point, none where there is no figure."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
