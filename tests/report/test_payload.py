"""What the page's script gets: every figure, cut where there are many classes, safe inside of a script element."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest

from memmod.report import Memory
from memmod.report import payload as module
from memmod.report.explanation import Explanation
from memmod.report.payload import LARGEST, NEAREST, embedded, payload
from tests.report.explanations import explanation
from tests.report.pages import HOSTILE, page, run, scorecard


def explained(names, **options):
    return msgspec.convert(explanation(list(names), **options), Explanation)


@pytest.mark.parametrize("text", [*HOSTILE, "\ud83d\ude00 é", "\\u003c"])
def test_embedded_json_is_the_same_value_without_markup(text):
    found = embedded({"name": [text]})
    assert json.loads(found) == {"name": [text]}
    assert not set("<>&\u2028\u2029") & set(found)


def test_every_selection_that_was_measured_is_there():
    shown = run()
    found = payload(shown)["measured"]
    ours, original = shown.scorecard.methods[:2]
    assert [entry["classes"] for entry in found] == [[0], [1], [2], [0, 1], [0, 2]]
    assert found[1] == {
        "classes": [1],
        "forget": ours.acc_forget[1],
        "retain": ours.acc_retain[1],
        "forgetBefore": original.acc_forget[1],
        "retainBefore": original.acc_retain[1],
    }


def test_rows_of_predictions_are_whole_for_few_classes():
    flows = payload(run())["flows"]
    before = run().explanation.flows.before
    assert {c: share for c, share in flows["before"][0]} == {c: v for c, v in enumerate(before[0]) if v}
    assert flows["sets"][0]["classes"] == [0, 1] and set(flows["sets"][0]["after"]) == {"0", "1"}


def test_layers_are_called_by_their_names():
    assert ".memory" not in json.dumps(payload(run()) | {"charts": None})


def test_a_class_without_images_has_no_row():
    names = ("cat", "dog", "eel")
    flows = payload(run(names, explanation=explained(names, without_images=1)))["flows"]
    assert flows["before"][1] is None and flows["before"][0]


def test_rows_of_many_classes_hold_the_largest():
    names = tuple(f"class {c}" for c in range(60))
    found = payload(run(names))
    row = found["flows"]["after"][7]
    assert len(row) == LARGEST and [share for _, share in row] == sorted((s for _, s in row), reverse=True)
    after = run(names).explanation.flows.after[7]
    assert row[0] == [after.index(max(after)), round(max(after), 6)]
    nearest = found["atlas"]["nearest"][7]
    assert len(nearest) == NEAREST and 7 not in [c for c, _ in nearest]


def test_pictures_beyond_the_room_are_left_out_of_every_class_alike(monkeypatch):
    shown = run()
    sizes = [len(image.picture) + len(image.map) for image in shown.explanation.images]
    monkeypatch.setattr(module, "PICTURES", 2 * sum(sizes) // 4)
    found = payload(shown)
    kept = [image["label"] for image in found["images"]]
    assert {kept.count(c) for c in range(3)} <= {1, 2} and 3 <= len(kept) < len(sizes)
    assert found["leftOut"] == len(sizes) + len(shown.explanation.responses) - len(kept) - len(found["responses"])


@pytest.mark.slow
def test_a_thousand_classes_stay_small():
    names = tuple(f"class number {c}" for c in range(1000))
    told = explained(names, layers=53, units=500, images=2, shape=(3, 32, 32), matrices=False)
    # as many gates as are drawn at all
    memories = [Memory("fc", np.random.default_rng(0).random((1000, 1500)))]
    shown = run(names, explanation=told, scorecard=scorecard(names), memories=memories)
    assert 1_000_000 < len(page(shown).encode()) < 10_000_000
    found = payload(shown)
    assert len(found["atlas"]["layers"]) == 53 and found["flows"]["before"] is None and found["leftOut"] > 0
