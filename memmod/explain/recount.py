"""Two or three sentences on a class or an image, made from measured figures, each with where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memmod.explain.attribution import TOLERANCE

# Predictions on a class's images that are named: of the largest, those with at least so large a share.
NAMED, LEAST_NAMED = 2, 0.05

FORMATS = {"count": "{:.0f}", "points": "{:.1f}", "percent": "{:.0%}"}


@dataclass(frozen=True)
class Value:
    """A figure in a sentence: as it is shown, and the path of what it shows in the explanation, parts with dots."""

    shown: str
    path: str
    format: str


@dataclass
class Sentence:
    """A sentence, and every figure in it in its order."""

    text: str = ""
    values: list[Value] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"text": self.text, "values": [vars(value) for value in self.values]}


def at_path(explanation: Any, path: str) -> Any:
    """The value at a path such as "flows.after.5.7"; a part that is a number counts in a list."""
    for part in path.split("."):
        explanation = explanation[int(part)] if isinstance(explanation, (list, tuple)) else explanation[part]
    return explanation


def shown(value: float, format_: str) -> str:
    """A figure as sentences show it."""
    return FORMATS[format_].format(value).replace("-", "−").replace("%", " %")


def recount_class(explanation: Mapping[str, Any], c: int) -> list[Sentence]:
    """What forgetting class c does, from the parts of an explanation that are there."""
    names = explanation["class_names"]
    say = _Writer(explanation)
    atlas, taken, flows = (explanation.get(part) for part in ("atlas", "taken", "flows"))
    if atlas is not None:
        say(
            f"Forgetting {names[c]} closes ", ("count", f"atlas.closed.{c}"), " of ", ("count", "atlas.units"), " units"
        )
        other = atlas["overlaps"][c]
        if other is not None:
            say("; ", ("percent", f"atlas.overlaps.{c}.share"), f" of them also close for {names[other['class']]}")
        say.end()
    if taken is not None and taken[c] is not None:
        at, own = f"taken.{c}", taken[c]
        say("Of the ", ("points", f"{at}.drop"), f" points of logit that this takes from {_images(names[c])}, ")
        stage = max(range(len(own["stages"])), key=lambda s: own["stages"][s]["share"])
        name = own["stages"][stage]["name"]
        say(("percent", f"{at}.stages.{stage}.share"), f" go in {name}")
        if own["units"]:
            unit = own["units"][0]
            where = "one unit of it" if unit["stage"] == name else f"one unit of {unit['stage']}"
            say(
                " and ", ("percent", f"{at}.units.0.share"), f" with {where} ({unit['layer'].rpartition('.')[0]}, unit "
            )
            say(("count", f"{at}.units.0.unit"), ")")
        say.end()
        if own["residual"] > TOLERANCE:
            say("The parts add up to that only roughly: of an image they miss up to ", ("percent", f"{at}.residual"))
            say(" of the mean that is taken")
            say.end()
    if flows is not None and any(flows["after"][c]):
        row = flows["after"][c]
        order = sorted(range(len(row)), key=lambda d: -row[d])[:NAMED]
        called = [d for number, d in enumerate(order) if number == 0 or row[d] >= LEAST_NAMED]
        say(f"Its test images are then called {names[called[0]]} (", ("percent", f"flows.after.{c}.{called[0]}"), ")")
        for d in called[1:]:
            say(f" and {names[d]} (", ("percent", f"flows.after.{c}.{d}"), ")")
        say.end()
    return say.sentences


def recount_image(explanation: Mapping[str, Any], number: int) -> list[Sentence]:
    """What forgetting does to the sample image at this place of `images`."""
    names, own = explanation["class_names"], explanation["images"][number]
    at, say = f"images.{number}", _Writer(explanation)
    forgotten = " and ".join(names[c] for c in own["forgotten"])
    say(f"Forgetting {forgotten} takes ", ("points", f"{at}.drop"), " of the ", ("points", f"{at}.logit_before"))
    say(f" points of this image's logit for {names[own['label']]}")
    if own["stages"]:
        stage = max(range(len(own["stages"])), key=lambda s: own["stages"][s]["share"])
        say(", ", ("percent", f"{at}.stages.{stage}.share"), f" of it in {own['stages'][stage]['name']}")
    say.end()
    if own["before"] == own["after"]:
        say(f"It is still called {names[own['after']]}")
    else:
        say(f"It was called {names[own['before']]}, and is now called {names[own['after']]}")
    say.end()
    return say.sentences


class _Writer:
    """Collects sentences from texts and (format, path) of figures."""

    def __init__(self, explanation: Mapping[str, Any]) -> None:
        self.explanation = explanation
        self.sentences: list[Sentence] = []
        self._sentence = Sentence()

    def __call__(self, *parts: str | tuple[str, str]) -> None:
        for part in parts:
            if isinstance(part, str):
                self._sentence.text += part
                continue
            format_, path = part
            value = Value(shown(at_path(self.explanation, path), format_), path, format_)
            self._sentence.text += value.shown
            self._sentence.values.append(value)

    def end(self) -> None:
        self._sentence.text += "."
        self.sentences.append(self._sentence)
        self._sentence = Sentence()


def _images(name: str) -> str:
    return f"images of {name}"
