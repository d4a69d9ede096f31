"""Finished parts are found by what they were made of, and by nothing else."""

from __future__ import annotations

import json
import logging
import math

import pytest

from memmod.errors import RunError
from memmod.files.parts import Parts


def test_a_part_is_found_by_its_key(tmp_path):
    parts = Parts(tmp_path / "parts")
    assert parts.get({"a": 1}) is None
    parts.put({"a": 1, "b": (2, 3)}, {"x": [1.5, None]})
    assert parts.get({"b": [2, 3], "a": 1}) == {"x": [1.5, None]}
    assert parts.get({"a": 1, "b": (2, 4)}) is None


def test_a_figure_that_is_none_becomes_null(tmp_path):
    Parts(tmp_path).put({}, [math.nan, 1.0])
    assert Parts(tmp_path).get({}) == [None, 1.0]


@pytest.mark.parametrize("damage", ["format", "key", "cut"])
def test_what_another_version_wrote_counts_as_missing_and_says_so(tmp_path, caplog, damage):
    parts = Parts(tmp_path)
    parts.put({"a": 1}, 5)
    (path,) = tmp_path.iterdir()
    document = json.loads(path.read_text())
    if damage == "cut":
        path.write_text(path.read_text()[:-5])
    else:
        path.write_text(json.dumps({**document, damage: "other"}))
    with caplog.at_level(logging.WARNING):
        assert parts.get({"a": 1}) is None
    assert "measured again" in caplog.text
    parts.put({"a": 1}, 6)
    assert parts.get({"a": 1}) == 6


def test_what_is_not_json_is_refused(tmp_path):
    with pytest.raises(RunError, match="key of a part"):
        Parts(tmp_path).put({"a": object()}, 1)
    with pytest.raises(RunError, match="cannot be written as JSON"):
        Parts(tmp_path).put({"a": 1}, object())
    assert not list(tmp_path.iterdir())
