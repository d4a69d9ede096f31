"""Means of the figures of several audits, over classes, seeds and runs, beside those of the oracles."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memmod.errors import RunError
from memmod.evaluation.audit.card import markdown_table, number
from memmod.evaluation.audit.interval import UNJUDGED, WITHIN
from memmod.files.strict_json import Origin, check
from memmod.report.cards import Audit, AuditRow, Figure
from memmod.runs.audits import AUDITS, CARD
from memmod.runs.folder import read_json


class Row(AuditRow, frozen=True):
    """One figure of one audit, with the further networks that stand beside it."""

    others: dict[str, Figure] = {}


class Card(Audit, frozen=True):
    """An audit.json."""

    rows: list[Row]


@dataclass(frozen=True)
class Mean:
    """A figure's mean over the audits.

    Args:
        value: of the networks that were audited.
        oracles: of their oracles.
        low: of the lower ends of the oracles' intervals.
        high: of the upper ends.
        others: of further networks, by their names; None where an audit has no such figure.
        verdict: "within" those ends, else the word of the audits that lie outside on the same side.
    """

    attack: str
    figure: str
    level: str
    value: float
    oracles: float
    low: float
    high: float
    others: dict[str, float | None]
    verdict: str

    def cells(self, others: Sequence[str]) -> tuple[str, ...]:
        """As `Means.headings` calls them."""
        ends = f"{number(self.oracles)} ({number(self.low)} to {number(self.high)})"
        beside = [number(self.others.get(name)) for name in others]
        return (self.attack, self.figure, self.level, number(self.value), ends, *beside, self.verdict)


@dataclass(frozen=True)
class Means:
    """Every figure that all of some audits judge.

    Args:
        audits: how many.
        left_out: figures that only some of them judge.
        others: names of the further networks that all of them have.
    """

    audits: int
    rows: tuple[Mean, ...]
    left_out: int
    others: tuple[str, ...]

    @property
    def headings(self) -> tuple[str, ...]:
        """Of the table's columns."""
        return ("attack", "figure", "level", "mean", "oracles", *self.others, "verdict")

    def cells(self) -> list[tuple[str, ...]]:
        """The table, a row for each figure."""
        return [row.cells(self.others) for row in self.rows]

    @property
    def summary(self) -> str:
        """One sentence."""
        words = [row.verdict for row in self.rows]
        counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
        text = f"Means of {len(self.rows)} figures over {self.audits} audits: {counts}"
        return text + (f"; {self.left_out} that not all of them judge are left out" if self.left_out else "")

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {"audits": self.audits, "left_out": self.left_out, "rows": [asdict(row) for row in self.rows]}

    def markdown(self) -> str:
        """The table in Markdown, with the summary above it."""
        return f"{self.summary}.\n\n{markdown_table(self.headings, self.cells())}\n"


def read_cards(runs: Sequence[str | os.PathLike[str]], quick: bool = False) -> list[Card]:
    """Every audit that lies in these run folders, full ones or quick ones.

    Raises:
        RunError: a folder without such an audit, with a damaged one, or that is named twice.
    """
    found = []
    places = [Path(run).resolve() for run in runs]
    for run, place in zip(runs, places, strict=True):
        if places.count(place) > 1:
            raise RunError(f"{run} is named twice, and its audits would count twice: name it once")
    for run in map(Path, runs):
        paths = sorted((run / AUDITS).glob(f"*/{CARD}"))
        origins = [Origin(str(path), RunError, "mend it, or delete it and run `memmod audit` again") for path in paths]
        cards = [check(read_json(path), Card, origin) for path, origin in zip(paths, origins, strict=True)]
        kind = [card for card in cards if card.quick == quick]
        if not kind:
            raise RunError(
                f"{run} has no {'quick' if quick else 'full'} audit: run `memmod audit{' --quick' if quick else ''}` "
                "on it first"
            )
        found += kind
    return found


def means(cards: Sequence[Card]) -> Means:
    """The means of the figures that all of these audits judge, in the first one's order.

    An interval's ends are averaged like the figures: where each figure lies within its own interval, so does the mean,
    and one that is far outside shows.
    """
    tables = [{(row.attack, row.figure): row for row in card.rows if _judged(row)} for card in cards]
    shared = [key for key in tables[0] if all(key in table for table in tables)]
    others = [name for name in tables[0][shared[0]].others if _everywhere(name, tables, shared)] if shared else []
    rows = tuple(_mean([table[key] for table in tables], others) for key in shared)
    return Means(len(cards), rows, len({key for table in tables for key in table}) - len(shared), tuple(others))


def _judged(row: Row) -> bool:
    figures = (row.value, *row.oracles, *(row.oracle_interval or (None,)))
    return row.verdict != UNJUDGED and all(figure is not None and math.isfinite(figure) for figure in figures)


def _everywhere(name: str, tables: Sequence[dict[tuple[str, str], Row]], keys: Sequence[tuple[str, str]]) -> bool:
    return all(name in table[key].others for table in tables for key in keys)


def _mean(rows: Sequence[Row], others: Sequence[str]) -> Mean:
    def over(values: Sequence[float]) -> float:
        return math.fsum(values) / len(values)

    value = over([row.value for row in rows])
    low, high = (over([row.oracle_interval[end] for row in rows]) for end in (0, 1))
    verdict = WITHIN
    if not low <= value <= high:
        # The one that lies furthest outside on that side.
        side, sign = (1, 1) if value > high else (0, -1)
        verdict = max(rows, key=lambda row: sign * (row.value - row.oracle_interval[side])).verdict
    beside = {name: [row.others[name] for row in rows] for name in others}
    return Mean(
        rows[0].attack,
        rows[0].figure,
        rows[0].level,
        value,
        over([over(row.oracles) for row in rows]),
        low,
        high,
        {name: None if None in values else over(values) for name, values in beside.items()},
        verdict,
    )
