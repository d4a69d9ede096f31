"""explanation.json: read whole or in part, refused in words when it is damaged."""

from __future__ import annotations

import json

import msgspec
import pytest

from memmod.errors import RunError
from memmod.report.explanation import read_explanation
from tests.report.explanations import explanation

NAMES = ["cat", "dog", "eel"]
PARTS = ("atlas", "flows", "taken", "images", "responses", "recount", "faithfulness")


def _written(path, value):
    path.write_text(json.dumps(value))
    return path


def test_everything_is_read(tmp_path):
    value = explanation(NAMES)
    found = read_explanation(_written(tmp_path / "explanation.json", value), NAMES)
    back = msgspec.to_builtins(found)
    assert {key: back[key] for key in value} == value


def test_no_file_is_no_explanation(tmp_path):
    assert read_explanation(tmp_path / "explanation.json") is None


@pytest.mark.parametrize("part", PARTS)
def test_each_part_may_be_absent(tmp_path, part):
    value = explanation(NAMES)
    for absent in (value | {part: None}, {k: v for k, v in value.items() if k != part}):
        assert getattr(read_explanation(_written(tmp_path / "e.json", absent)), part) is None


def test_a_class_without_images_has_no_row(tmp_path):
    value = explanation(NAMES, without_images=1)
    value["flows"]["retrained"]["1"] = [None] * 3
    assert read_explanation(_written(tmp_path / "e.json", value)).flows.before[1] is None


def _change(value, path, new):
    *steps, last = path
    for step in steps:
        value = value[step]
    value[last] = new


@pytest.mark.parametrize(
    ("path", "new", "words"),
    [
        (("explanation",), 2, "explanation is 2, this memmod reads 1"),
        (("class_names",), ["cat"], "not 1"),
        (("atlas", "closed"), [1, 2], r"atlas\.closed holds 2 entries, not 3"),
        (("atlas", "closed_by"), [1, 2, 3], r"atlas\.closed_by holds 3 entries, not 4"),
        (("atlas", "layers", 0, "closed"), [1], "closed of the layer 'blocks.0.conv1.memory' holds 1 entries"),
        (("atlas", "units"), -1, ">= 0"),
        (("atlas", "jaccard", 1), [1.0], "a row of atlas.jaccard holds 1 entries"),
        (("atlas", "order"), [0, 0, 1], "does not name each of 3 classes once"),
        (("atlas", "linkage", 0), [0, 7, 0.5, 2], "joins what is not there in its step 0"),
        (("flows", "before"), [], r"flows\.before holds 0 entries"),
        (("flows", "retrained"), {"7": [0, 0, 0]}, r"flows\.retrained name the class 7, of 3"),
        (("flows", "retrained"), {"x": [0, 0, 0]}, r"flows\.retrained name the class -1"),
        (("flows", "sets", 0, "classes"), [5], r"flows\.sets\[0\] name the class 5"),
        (("taken",), [], "taken holds 0 entries, not 3"),
        (("images", 0, "after"), 3, "name the class 3, of 3"),
        (("images", 0, "picture"), "https://example.org/x.png", "regex"),
        (("images", 0, "map"), "data:image/svg+xml;base64,AAAA", "regex"),
        (("responses", 0, "exciting", 0, "box"), [1, 2], "length"),
        (("faithfulness", "rows", 0, "insertion"), "high", "float"),
    ],
)
def test_damage_is_refused_with_the_file_and_what_to_do(tmp_path, path, new, words):
    value = explanation(NAMES)
    _change(value, path, new)
    file = _written(tmp_path / "explanation.json", value)
    with pytest.raises(RunError, match=words) as raised:
        read_explanation(file)
    assert str(file) in str(raised.value) and "memmod explain RUN" in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", '{"explanation": NaN}', "[]", "\ud800".encode("utf-8", "surrogatepass")])
def test_what_is_no_json_is_refused(tmp_path, text):
    path = tmp_path / "explanation.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RunError, match="explanation.json"):
        read_explanation(path)


def test_the_classes_of_another_run_are_refused(tmp_path):
    path = _written(tmp_path / "explanation.json", explanation(NAMES))
    with pytest.raises(RunError, match="names other classes than the run"):
        read_explanation(path, ["cat", "dog", "owl"])
