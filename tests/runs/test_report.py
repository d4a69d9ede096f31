"""What a page is made of: every file of a run folder, none of them needed, each refused in words when it is damaged."""

from __future__ import annotations

import json
import random
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from memmod.errors import MemmodError, RunError
from memmod.memory_file import write_memory_file
from memmod.report import render
from memmod.runs.folder import RunFolder, write_json
from memmod.runs.report import collect, report_run
from tests.fuzz_files import OTHER_VALUES, places
from tests.report.explanations import explanation
from tests.report.pages import Parsed, audit, comparison, data_of, scorecard

NAMES = ("cat", "dog", "eel")
SETTINGS = {"data": "drawn", "data_root": None, "image_size": None, "base": "gone", "model": "resnet", "skip": []}


def unlearned(path: Path) -> RunFolder:
    """A run of unlearning whose base is gone: memories, metrics, and everything that is found later."""
    run = RunFolder.start(path, "unlearn", SETTINGS)
    memories = {"stem.memory": torch.zeros(3, 4), "late.memory": torch.full((3, 2), 5.0)}
    card = {
        "num_classes": 3,
        "class_names": list(NAMES),
        "base_sha256": "0" * 64,
        "input_shape": [1, 8, 8],
        "config": {"gate": "sigmoid"},
        "layers": ["stem", "late"],
    }
    write_memory_file(run.file("memory.safetensors"), memories, card)
    best = {"step": 4, "acc_forget": [0.0, 0.015, 0.02], "mean_retain": 0.9}
    run.write_metrics({"best": best, "base_retain": 0.925, "seconds": 7.4})
    write_json(run.file("scorecard.json"), msgspec.to_builtins(scorecard(NAMES)))
    write_json(run.file("explanation.json"), explanation(list(NAMES)))
    write_json(run.file("audits/dog/audit.json"), msgspec.to_builtins(audit(NAMES, 1)))
    write_json(run.file("audits/cat/audit.json"), msgspec.to_builtins(audit(NAMES, 0)))
    write_json(path.with_name(f"{path.name}-compared") / "comparison.json", msgspec.to_builtins(comparison(NAMES)))
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return unlearned(tmp_path / "run")


def test_every_file_is_collected(run):
    (found,) = collect(run.path).runs
    assert found.class_names == NAMES and found.title == "ResNet" and found.base == "gone"
    assert [memory.layer for memory in found.memories] == ["stem", "late"]
    np.testing.assert_allclose(found.memories[0].gates, 0.5)
    np.testing.assert_allclose(found.memories[1].gates, torch.tensor(5.0).sigmoid().item(), rtol=1e-6)
    assert found.scorecard == scorecard(NAMES)
    assert found.held_out.acc_forget == [0.0, 0.015, 0.02]
    assert [card.forgotten for card in found.audits] == [["cat"], ["dog"]]
    assert found.comparison == comparison(NAMES)
    assert found.explanation.atlas is not None
    assert "gone, which is not there now" in found.facts["base"]
    titles = [table.title for table in found.tables]
    assert titles[:2] == ["Settings of memmod unlearn", "Versions"] and "Audit of cat" in titles
    assert found.tables[0].rows == SETTINGS


FILES = ("memory.safetensors", "metrics.json", "scorecard.json", "explanation.json", "audits/cat/audit.json")


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_needed(run, name):
    run.file(name).unlink()
    written = report_run(run.path)
    assert written.page == run.file("report.html") and written.figures == ()
    assert data_of(written.page.read_text(encoding="utf-8"))[0]["names"] == list(NAMES)


def test_a_folder_with_settings_alone_has_a_page(tmp_path):
    run = RunFolder.start(tmp_path / "run", "unlearn", SETTINGS)
    text = Parsed(report_run(run.path).page.read_text(encoding="utf-8")).text
    assert "did not finish" in text and "ResNet on drawn" in text


@pytest.mark.parametrize("name", [*FILES, "../run-compared/comparison.json"])
def test_damage_is_refused_with_the_file(run, name):
    path = run.file(name)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(MemmodError) as raised:
        report_run(run.path)
    assert Path(name).name in str(raised.value)
    assert not run.file("report.html").exists()


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("scorecard.json", {"class_names": ["cat", "dog", "owl"]}, "name different classes: evaluate the run again"),
        ("scorecard.json", {"methods": []}, "`memmod evaluate` again"),
        ("explanation.json", {"class_names": ["cat", "dog", "owl"]}, "names other classes than the run"),
        ("audits/cat/audit.json", {"forgotten": ["owl"]}, "owl, which are not classes of the run"),
        ("audits/cat/audit.json", {"rows": [{}]}, "`memmod audit` again"),
        ("metrics.json", {"best": {"step": 1, "acc_forget": [0.5], "mean_retain": 0.5}}, "accuracies of 1 classes"),
        ("metrics.json", {"seconds": "long"}, "seconds"),
    ],
)
def test_files_that_do_not_fit_are_refused(run, name, change, words):
    path = run.file(name)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RunError, match=words):
        collect(run.path)


@pytest.mark.parametrize("base", ["a" * 5000, "nul\0", "/" + "b/" * 3000])
def test_a_base_that_cannot_be_anywhere_is_not_there(tmp_path, base):
    run = RunFolder.start(tmp_path / "run", "unlearn", SETTINGS | {"base": base})
    assert collect(run.path).runs[0].base == base


@pytest.mark.slow
def test_changed_files_are_refused_in_words_or_drawn(run):
    generator, ended = random.Random(0), set()
    names = ("config.json", *(name for name in FILES if name.endswith(".json")), "../run-compared/comparison.json")
    for case in range(150):
        path = run.file(names[case % len(names)])
        content = path.read_bytes()
        value = json.loads(content)
        *steps, last = generator.choice(list(places(value)))
        part = value
        for step in steps:
            part = part[step]
        part[last] = generator.choice(OTHER_VALUES)
        path.write_text(json.dumps(value))
        try:
            render(collect(run.path))
            ended.add("drawn")
        except MemmodError:
            ended.add("refused")
        path.write_bytes(content)
    assert ended == {"drawn", "refused"}


def test_an_erased_run_has_a_page_with_what_is_there(tmp_path):
    settings = {
        "data": "drawn",
        "unlearned": "gone",
        "base": "gone",
        "model": "resnet",
        "forget": [1],
        "threshold": 0.3,
        "budget": 0.2,
        "lr": 0.01,
        "batch_size": 64,
        "weight_decay": 0.01,
        "reset": ["fc"],
        "seed": 0,
    }
    run = RunFolder.start(tmp_path / "run", "erase", settings)
    assert "holds no accuracies" in Parsed(report_run(run.path).page.read_text(encoding="utf-8")).text
    card = {"class_names": list(NAMES), "forget": [1], "original": [0.9, 0.8, 0.7], "erased": [0.9, 0.0, 0.6]}
    write_json(run.file("scorecard.json"), card)
    report = collect(run.path)
    assert report.title == "ResNet on drawn without dog"
    assert report.runs[0].by_class.now == [0.9, 0.0, 0.6] and report.runs[0].by_class.forget == [1]
    write_json(run.file("scorecard.json"), card | {"forget": [3]})
    with pytest.raises(RunError, match="forget names a class that is not there"):
        collect(run.path)


def test_a_demo_has_a_page_for_all_its_networks(tmp_path):
    run = RunFolder.start(tmp_path / "demo", "demo", {"data": "drawn", "models": ["resnet", "vit"], "seed": 3})
    for model in ("resnet", "vit"):
        unlearned(run.file(f"{model}-unlearned"))
    page = report_run(run.path, facts={"time": "9 s"}).page
    html = page.read_text(encoding="utf-8")
    assert len(data_of(html)) == 2
    assert "seed 3" in Parsed(html).text and "time 9 s" in Parsed(html).text


def test_a_page_elsewhere_is_not_written_over(run, tmp_path):
    report_run(run.path)
    report_run(run.path)
    out = tmp_path / "page.html"
    out.write_text("mine")
    with pytest.raises(RunError, match="already there: .*page.html"):
        report_run(run.path, out)
    assert out.read_text() == "mine"
    assert report_run(run.path, out, overwrite=True).page == out and "<h1>" in out.read_text(encoding="utf-8")
    with pytest.raises(RunError, match="is a folder"):
        report_run(run.path, tmp_path)


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(RunError, match="is not a run folder"):
        report_run(tmp_path)
