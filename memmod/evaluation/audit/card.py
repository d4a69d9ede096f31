"""What an audit found, a row for each figure, as a table, Markdown or JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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

    def cells(self) -> tuple[str, ...]:
        """As `HEADINGS` calls them."""
        if self.measure is None:
            return (self.attack, "", self.level, "", "", "", "", "", self.reason)
        oracles = ""
        if self.oracles:
            mean = math.fsum(self.oracles) / len(self.oracles)
            oracles = f"{number(mean)} ({number(min(self.oracles))}-{number(max(self.oracles))})"
        others = (self.held_out, self.original, self.control)
        return (
            self.attack,
            self.figure,
            self.level,
            number(self.measure.value),
            oracles,
            *(number(value) for value in others),
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
        }


@dataclass(frozen=True)
class AuditCard:
    """Every figure of an audit.

    Args:
        forget: the classes that should be gone.
        rows: in the order of the attacks.
        oracles: how many the intervals are made from.
    """

    forget: tuple[int, ...]
    rows: tuple[Row, ...]
    oracles: int

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
            "rows": [row.to_dict() for row in self.rows],
        }

    def markdown(self) -> str:
        """The table in Markdown, with the summary above it."""
        return f"{self.summary}.\n\n{markdown_table(HEADINGS, [row.cells() for row in self.rows])}\n"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; a bar in a cell is escaped."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def number(value: float | None) -> str:
    """Three digits behind the point, none where there is no figure."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
