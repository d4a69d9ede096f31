"""Run folders: what may be entered, what may be deleted, and that files are written whole."""

from __future__ import annotations

import json
import os

import pytest

from memmod.errors import RunError
from memmod.runs.folder import CONFIG, METRICS, RunFolder, read_json, write_json

SETTINGS = {"data": "digits", "seed": 3, "lambdas": (1.0, 0.1)}


def test_new_run_records_settings_and_versions(tmp_path):
    run = RunFolder.start(tmp_path / "a" / "b", "unlearn", SETTINGS)
    config = json.loads((run.path / CONFIG).read_text())
    assert config["command"] == "unlearn"
    assert config["settings"] == {"data": "digits", "seed": 3, "lambdas": [1.0, 0.1]}
    assert "torch" in config["versions"] and "python" in config["versions"]
    assert not run.resumed
    best = {"step": 4, "acc_forget": [0.0, 0.5], "mean_retain": 0.75}
    run.write_metrics({"best": best, "base_retain": 1.0, "seconds": 2.5, "note": float("nan")})
    assert RunFolder.open(run.path).metrics() == {"best": best, "base_retain": 1.0, "seconds": 2.5, "note": None}


def test_existing_folder_needs_resume_or_overwrite(tmp_path):
    RunFolder.start(tmp_path / "run", "unlearn", SETTINGS)
    with pytest.raises(RunError, match="already exists.*--resume.*--overwrite"):
        RunFolder.start(tmp_path / "run", "unlearn", SETTINGS)


def test_resume_enters_the_same_run_or_a_new_folder(tmp_path):
    assert not RunFolder.start(tmp_path / "run", "unlearn", SETTINGS, resume=True).resumed
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(b"state")
    assert RunFolder.start(tmp_path / "run", "unlearn", SETTINGS, resume=True).resumed
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() == b"state"


def test_resume_with_other_settings_names_them(tmp_path):
    RunFolder.start(tmp_path / "run", "unlearn", SETTINGS)
    with pytest.raises(RunError, match=r"other settings: seed was 3, now 4; "):
        RunFolder.start(tmp_path / "run", "unlearn", {**SETTINGS, "seed": 4}, resume=True)
    with pytest.raises(RunError, match="`memmod unlearn`: `memmod train` cannot resume"):
        RunFolder.start(tmp_path / "run", "train", SETTINGS, resume=True)


def test_overwrite_deletes_what_memmod_wrote_and_nothing_else(tmp_path):
    run = RunFolder.start(tmp_path / "run", "unlearn", SETTINGS)
    run.write_metrics({"old": 1})
    (run.path / "checkpoint").mkdir()
    (run.path / "checkpoint" / "state.safetensors").write_bytes(b"x")
    for name in ("baked-3.safetensors", "baked-3.json", ".checkpoint.safetensors.x1", ".metrics.json.x2"):
        (run.path / name).write_text("")
    (run.path / "notes.txt").write_text("mine")
    RunFolder.start(tmp_path / "run", "train", {"seed": 9}, overwrite=True)
    assert sorted(entry.name for entry in run.path.iterdir()) == [CONFIG, "notes.txt"]
    assert RunFolder.open(run.path).settings == {"seed": 9}


@pytest.mark.parametrize("keyword", ["resume", "overwrite"])
def test_a_folder_of_somebody_else_is_never_entered(tmp_path, keyword):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(RunError, match="not a run folder of memmod"):
        RunFolder.start(tmp_path, "train", SETTINGS, **{keyword: True})
    (tmp_path / CONFIG).write_text('{"model": "theirs"}')
    with pytest.raises(RunError, match="not written by memmod"):
        RunFolder.start(tmp_path, "train", SETTINGS, **{keyword: True})
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_overwrite_does_not_follow_links_out_of_the_folder(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    run = RunFolder.start(tmp_path / "run", "train", SETTINGS)
    (run.path / "checkpoint-old").symlink_to(outside)
    RunFolder.start(run.path, "train", SETTINGS, overwrite=True)
    assert (outside / "file").read_text() == "mine"


def test_leftovers_of_an_interrupted_write_do_not_make_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.abc").write_text("{")
    assert not RunFolder.start(tmp_path / "run", "train", SETTINGS).resumed


def test_empty_folder_is_used_and_a_file_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    RunFolder.start(tmp_path / "empty", "train", SETTINGS)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        RunFolder.start(tmp_path / "file", "train", SETTINGS)


def test_reading_what_is_not_there_says_so(tmp_path):
    with pytest.raises(RunError, match="there is no run folder"):
        RunFolder.open(tmp_path / "absent")
    run = RunFolder.start(tmp_path / "run", "train", SETTINGS)
    with pytest.raises(RunError, match="holds no metrics.json: it did not finish"):
        run.metrics()
    (run.path / METRICS).write_text("{")
    with pytest.raises(RunError, match="cannot be read as JSON"):
        run.metrics()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"settings": []}, r"expected `object`, got `array` at \$.settings"),
        ({"settings": None}, r"at \$.settings"),
        ({"command": 5}, r"expected `str`, got `int` at \$.command \(it is 5\)"),
        ({"versions": {"torch": 2}}, r"at \$.versions"),
        ({"versions": []}, r"at \$.versions"),
        ({"format": "memmod-run-9"}, "was not written by memmod"),
    ],
)
@pytest.mark.parametrize("enter", ["open", "resume", "overwrite"])
def test_a_changed_config_is_refused_with_its_field(tmp_path, change, words, enter):
    run = RunFolder.start(tmp_path / "run", "train", SETTINGS)
    config = run.path / CONFIG
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(RunError, match=f"run/config.json .*{words}"):
        RunFolder.open(run.path) if enter == "open" else RunFolder.start(run.path, "train", SETTINGS, **{enter: True})


@pytest.mark.parametrize("field", ["format", "command", "settings", "versions"])
def test_a_config_without_a_field_is_refused(tmp_path, field):
    run = RunFolder.start(tmp_path / "run", "train", SETTINGS)
    config = json.loads((run.path / CONFIG).read_text())
    del config[field]
    (run.path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(RunError, match=f"missing required field `{field}`|not written by memmod"):
        RunFolder.open(run.path)


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ([], "got `array`"),
        ({"best": {"step": 1, "acc_forget": [], "mean_retain": 0.5}}, r"length >= 1 at \$.best.acc_forget"),
        ({"best": {"step": -1, "acc_forget": [0.5], "mean_retain": 0.5}}, r"at \$.best.step \(it is -1\)"),
        ({"best": {"step": 1, "acc_forget": [0.5, "x"], "mean_retain": 0.5}}, r"acc_forget\[1\] \(it is 'x'\)"),
        ({"best": {"step": 1, "acc_forget": [0.5], "mean_retain": 0.5}, "base_retain": 1.0}, "field `seconds`"),
    ],
)
def test_changed_metrics_are_refused_with_their_field(tmp_path, metrics, words):
    run = RunFolder.start(tmp_path / "run", "unlearn", SETTINGS)
    write_json(run.path / METRICS, metrics)
    with pytest.raises(RunError, match=f"run/metrics.json .*{words}"):
        run.metrics()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), "folder:\udcff"])
def test_settings_that_json_cannot_hold_leave_no_folder(tmp_path, value):
    with pytest.raises(RunError, match="the settings of a run"):
        RunFolder.start(tmp_path / "run", "train", {"data": value})
    assert not (tmp_path / "run").exists()


def test_what_json_cannot_hold_is_not_written(tmp_path):
    for value in ({"a": float("inf")}, {"a": "\udcff"}, {"a": object()}):
        with pytest.raises(RunError, match="out.json cannot be written as JSON"):
            write_json(tmp_path / "out.json", value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["directory", "link to itself", "link to nothing"])
def test_something_else_in_the_place_of_a_file(tmp_path, place):
    run = RunFolder.start(tmp_path / "run", "train", SETTINGS)
    for name in (METRICS, CONFIG):
        path = run.path / name
        path.unlink(missing_ok=True)
        path.mkdir() if place == "directory" else path.symlink_to(path if "itself" in place else "nowhere")
        with pytest.raises(RunError, match=str(run.path)):
            run.metrics() if name == METRICS else RunFolder.open(run.path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_json(path, "old")

    def broken(*_args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, "new")
    assert read_json(path) == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]
