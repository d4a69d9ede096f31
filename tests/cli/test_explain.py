"""`memmod explain` on a real run: every figure of its sentences stands in the file, and the parts add up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from memmod.errors import RunError
from memmod.explain.faithfulness import FaithfulnessConfig
from memmod.explain.measure import measure_faithfulness
from memmod.explain.recount import at_path, shown
from memmod.explain.rivals import MAPS
from memmod.runs.explain import ExplainOptions
from memmod.runs.restore import restore_unlearned
from tests.cli.test_main import TINY, fail, succeed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    succeed("train", "--model", "resnet", "--epochs", 2, "--out", folder / "base")
    succeed("unlearn", "--base", folder / "base", "--out", folder / "unlearned", "--preset", "fast", *TINY)
    succeed("retrain", folder / "base", "--without", "8", "--seeds", 1)
    return folder


def test_the_explanation_is_told_and_written(runs: Path) -> None:
    output = succeed("explain", runs / "unlearned", "--mean-of", 6, "--images", 2, "--set", "3,8", "--threshold", 0.9)
    found = json.loads((runs / "unlearned/explanation.json").read_text())
    assert len(found["taken"]) == 10 and len(found["images"]) == 20
    assert [each["classes"] for each in found["flows"]["sets"]] == [[3, 8]]
    # The one class that there is a retrained network for; it never calls anything by that class.
    assert list(found["flows"]["retrained"]) == ["8"] and found["flows"]["retrained"]["8"][8] == 0
    for own in found["taken"]:
        assert sum(layer["share"] for layer in own["layers"]) == pytest.approx(1, abs=1e-6)
        assert own["residual"] <= 0.01
    for own in found["images"]:
        assert own["drop"] == pytest.approx(own["logit_before"] - own["logit_after"], abs=1e-6)
        assert own["picture"].startswith("data:image/png") and own["map"].startswith("data:image/png")
    responses = found["responses"]
    assert {own["class"] for own in responses} <= set(range(10)) and responses
    for own in responses:
        first = found["atlas"]["specific"][own["class"]][0]
        assert (own["layer"], own["unit"]) == (first["layer"], first["unit"])
        values = [shown["value"] for shown in own["exciting"]]
        assert values == sorted(values, reverse=True) and len(own["closing"]) == 6
        assert abs(own["closing"][0]["change"]) >= abs(own["closing"][-1]["change"])
    sentences = [s for kind in ("classes", "images") for own in found["recount"][kind] for s in own["sentences"]]
    values = [value for sentence in sentences for value in sentence["values"]]
    assert len(values) > 60
    for value in values:
        assert value["shown"] == shown(at_path(found, value["path"]), value["format"])
    first = found["recount"]["classes"][0]["sentences"][0]["text"]
    assert first in " ".join(output.split())


def test_one_class_and_the_seed(runs: Path) -> None:
    def explained(seed: int) -> dict:
        succeed("explain", runs / "unlearned", "--classes", "8", "--mean-of", 3, "--images", 1, "--seed", seed)
        return json.loads((runs / "unlearned/explanation.json").read_text())

    first, again, other = explained(0), explained(0), explained(1)
    assert [c for c, own in enumerate(first["taken"]) if own is not None] == [8]
    assert first == again and first["images"][0]["image"] != other["images"][0]["image"]


def near(figures: dict) -> dict:
    """What equals them, and intervals, to rounding."""
    return {name: pytest.approx(value, rel=1e-4) for name, value in figures.items()}


def test_the_faithfulness_of_maps_is_measured_and_shown(runs: Path, tmp_path: Path) -> None:
    few = ("--classes", "8", "--mean-of", 1, "--images", 0, "--units", 0)
    succeed("explain", runs / "unlearned", *few, "--faithfulness", 10)
    found = json.loads((runs / "unlearned/explanation.json").read_text())
    measured = found["faithfulness"]
    assert measured["images"] == found["settings"]["faithfulness"] == 10
    assert [row["map"] for row in measured["rows"]] == list(MAPS)
    unlearned = restore_unlearned(runs / "unlearned")
    own = {name: MAPS[name] for name in ("gate path", "brightness")}
    config = FaithfulnessConfig(images=10, checked=10)
    expected = measure_faithfulness(unlearned.wf, unlearned.load_data().test, own, config).to_dict()
    assert measured["checks"] == near(expected["checks"])
    rows = {row.pop("map"): row for row in measured["rows"]}
    for row in expected["rows"]:
        assert rows[row.pop("map")] == near(row)
    succeed("report", runs / "unlearned", "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Can the maps be trusted?" in page and f"{measured['checks']['sum_worst']:.4f} at most" in page
    # Every explanation is made whole: one without it has none.
    succeed("explain", runs / "unlearned", *few)
    assert "faithfulness" not in json.loads((runs / "unlearned/explanation.json").read_text())


def test_faithfulness_without_captum_is_refused_before_anything_is_done(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (runs / "unlearned/explanation.json").read_bytes()
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    words = fail("explain", runs / "unlearned", "--faithfulness", 6, "--mean-of", 1, "--seed", 3)
    assert "pip install captum" in words
    assert (runs / "unlearned/explanation.json").read_bytes() == before


def test_bad_input_is_worded(runs: Path) -> None:
    with pytest.raises(RunError, match="faithfulness is -1 images"):
        ExplainOptions(faithfulness=-1)
    assert "unknown class name 'ten'" in fail("explain", runs / "unlearned", "--classes", "ten")
    assert "has fewer than 2 classes" in fail("explain", runs / "unlearned", "--set", "3")
    assert "without memories" in fail("explain", runs / "base")
