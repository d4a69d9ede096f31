"""What the page's script needs of a run, as JSON that can stand inside of a script element."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import msgspec

from memmod.report import words
from memmod.report.cards import Scorecard
from memmod.report.data import Run
from memmod.report.explanation import Atlas, Explanation, Flows, Image, Response, Row, Taken
from memmod.report.figures import MANY

# Of a row of predictions, what many classes leave room for; and of a class's likenesses.
LARGEST = 12
NEAREST = 8
# Of an image's layers, those with the largest shares.
LAYERS = 3
# Bytes of pictures in a page: with everything else it stays below 5 MB.
PICTURES = 3_000_000
# Characters that end a script element, or a line of JavaScript, inside of JSON's strings.
_ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def embedded(value: Any) -> str:
    """A JSON value as it can stand in a script element: compact, and no character of it is markup."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(str.maketrans(_ESCAPED))


def payload(run: Run) -> dict[str, Any]:
    """The run's figures by selection; matrices of many classes are cut to what the page shows of a chosen one."""
    told = run.explanation
    return {
        "names": list(run.class_names),
        "command": run.command,
        "folder": run.folder,
        "base": run.base,
        "fixed": list(run.by_class.forget) if run.by_class is not None and run.command == "erase" else None,
        "byClass": None if run.by_class is None else {"now": run.by_class.now, "original": run.by_class.original},
        "heldOut": None
        if run.held_out is None or run.scorecard is not None
        else {"forget": list(run.held_out.acc_forget), "retain": run.held_out.mean_retain},
        "measured": _measured(run.scorecard),
        "audited": [
            {"classes": sorted(audit.forget), "worse": audit.counts.get("worse", 0), "judged": audit.judged}
            for audit in run.audits
        ],
        "explained": told is not None,
        **(_explained(told) if told is not None else {}),
    }


def _measured(card: Scorecard | None) -> list[dict[str, Any]]:
    """Every selection that was evaluated, single classes first: Acc_f and Acc_r, now and of the original network."""
    if card is None:
        return []
    groups = [card.methods, *(methods for methods in card.sets.values() if len(methods) > 1)]
    found = []
    for ours, original, *_ in groups:
        for k, classes in enumerate(ours.selections):
            found.append(
                {
                    "classes": sorted(classes),
                    "forget": ours.acc_forget[k],
                    "retain": ours.acc_retain[k],
                    "forgetBefore": original.acc_forget[k],
                    "retainBefore": original.acc_retain[k],
                }
            )
    return found


def _explained(told: Explanation) -> dict[str, Any]:
    many = len(told.class_names) > MANY
    images, responses, left_out = _within(told.images, told.responses)
    return {
        "flows": None if told.flows is None else _flows(told.flows, many),
        "atlas": None if told.atlas is None else _atlas(told.atlas),
        "taken": None if told.taken is None else [None if own is None else _named(own) for own in told.taken],
        "images": images,
        "responses": responses,
        "leftOut": left_out,
        "recount": None if told.recount is None else msgspec.to_builtins(told.recount),
        "shape": told.input_shape,
    }


def _flows(flows: Flows, many: bool) -> dict[str, Any]:
    def row(values: Row) -> list[list[float]] | None:
        if values is None or all(value is None for value in values):
            return None
        there = [[c, value] for c, value in enumerate(values) if value]
        if not many:
            return there
        return [[c, _short(value)] for c, value in sorted(there, key=lambda pair: -pair[1])[:LARGEST]]

    def rows(by_class: dict[str, list[Any]] | None) -> dict[str, Any]:
        return {str(int(c)): row(values) for c, values in (by_class or {}).items()}

    return {
        "before": None if flows.before is None else [row(values) for values in flows.before],
        "after": None if flows.after is None else [row(values) for values in flows.after],
        "retrained": rows(flows.retrained),
        "sets": [{"classes": sorted(group.classes), "after": rows(group.after)} for group in flows.sets],
    }


def _atlas(atlas: Atlas) -> dict[str, Any]:
    return {
        "threshold": atlas.threshold,
        "units": atlas.units,
        "closed": atlas.closed,
        "layers": [
            {"name": words.layer(layer.name), "units": layer.units, "closed": layer.closed} for layer in atlas.layers
        ],
        "specific": [
            [[words.layer(unit.layer), unit.unit, _short(unit.specificity), _short(unit.gate)] for unit in units]
            for units in atlas.specific
        ],
        "nearest": None if atlas.jaccard is None else [_nearest(c, row) for c, row in enumerate(atlas.jaccard)],
    }


def _nearest(own: int, row: Row) -> list[list[float]]:
    """The classes whose rows are most like class `own`'s."""
    pairs = [[c, _short(value)] for c, value in enumerate(row or []) if c != own and value is not None]
    return sorted(pairs, key=lambda pair: -pair[1])[:NEAREST]


def _within(
    images: Sequence[Image] | None, responses: Sequence[Response] | None
) -> tuple[list[Any] | None, list[Any] | None, int]:
    """Images and responses as far as there is room for their pictures, all classes alike; and how many are left out."""
    sized = [(image.forgotten, _bytes(image), image) for image in images or []]
    sized += [([response.class_], _bytes(response), response) for response in responses or []]
    turns: dict[tuple, int] = {}
    ordered = []
    for place, (classes, size, item) in enumerate(sized):
        key = (type(item), *classes)
        turns[key] = turns.get(key, -1) + 1
        ordered.append((turns[key], place, size, item))
    kept, used = set(), 0
    for _, place, size, _item in sorted(ordered, key=lambda entry: entry[:2]):
        if used + size > PICTURES:
            break
        used += size
        kept.add(place)
    shown = [item for place, (_, _, item) in enumerate(sized) if place in kept]
    return (
        None if images is None else [_named(item) for item in shown if isinstance(item, Image)],
        None if responses is None else [_named(item) for item in shown if isinstance(item, Response)],
        len(sized) - len(shown),
    )


def _named(item: Taken | Image | Response) -> dict[str, Any]:
    """What the page shows of it as JSON values, with layers by their names."""
    found = msgspec.to_builtins(item)
    if isinstance(item, Image):
        found["layers"] = sorted(found["layers"], key=lambda layer: -(layer["share"] or 0))[:LAYERS]
        del found["units"]
    elif isinstance(item, Taken) and item.stages:
        found["layers"] = []
    for part in (found, *found.get("units", ())):
        if "layer" in part:
            part["layer"] = words.layer(part["layer"])
    for part in found.get("layers", ()):
        part["name"] = words.layer(part["name"])
    return found


def _bytes(item: Image | Response) -> int:
    if isinstance(item, Image):
        return len(item.picture) + len(item.map or "")
    return sum(len(shown.picture) for shown in (*item.exciting, *item.closing))


def _short(value: float | None) -> float | None:
    """Six digits behind the point: more than the page shows."""
    return value if value is None or math.isinf(value) else round(value, 6)
