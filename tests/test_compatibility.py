"""What `make compat` installs and writes, without installing anything."""

from __future__ import annotations

import sys

import pytest

from tests import compatibility
from tests.compatibility import Pair, Result


def test_the_newest_torch_has_the_pinned_requirements():
    text = compatibility.requirements(compatibility.newest())
    pinned = compatibility.REQUIREMENTS.read_text()
    assert text.startswith(pinned) and "pytest==" in text.removeprefix(pinned)


def test_an_older_torch_comes_with_its_torchvision_and_a_setuptools_that_it_takes():
    lines = compatibility.requirements("2.11.0").splitlines()
    assert {"torch==2.11.0", "torchvision==0.26.0", "setuptools>=77"} <= set(lines)
    assert not [line for line in lines if line.startswith("setuptools==")]
    assert f"timm=={compatibility.pin('timm')}" in lines


def test_every_python_runs_beside_the_newest_and_one_beside_every_torch():
    pairs = compatibility.pairs()
    assert {pair.python for pair in pairs if pair.torch == compatibility.newest()} == {"3.10", "3.11", "3.12", "3.13"}
    assert {pair.torch for pair in pairs} == {"2.10.0", "2.11.0", compatibility.newest()}


def test_an_interpreter_is_found_or_missing_in_words(tmp_path, monkeypatch):
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = compatibility.find_python(version)
    assert found is None or found.name.startswith("python")
    monkeypatch.setattr(compatibility, "WORK", tmp_path)
    result = compatibility.check(Pair("2.3", "2.10.0"), tmp_path / "no.tar.gz", keep=False)
    assert result.failed == "no python2.3 on this machine" and list(tmp_path.iterdir()) == []


def test_a_step_that_fails_is_named_with_the_end_of_its_output(tmp_path, monkeypatch):
    monkeypatch.setattr(compatibility, "WORK", tmp_path)
    folder = tmp_path / "pair"
    folder.mkdir()
    environment = compatibility.Environment(folder)
    assert environment.run("hello", [sys.executable, "-c", "print(1)"]) == "1\n"
    with pytest.raises(compatibility.StepFailed, match=r"(?s)build \(exit 3\): .*no compiler"):
        environment.run("build", [sys.executable, "-c", "print('no compiler'); raise SystemExit(3)"])
    assert "no compiler" in environment.log.read_text() and set(environment.seconds) == {"hello", "build"}


def test_the_page_has_a_row_a_pair_and_what_failed():
    works = Result("3.11.7", "2.10.0", tests="9 passed")
    fails = Result("3.13", "2.14.1", failed="build (exit 1): error: x")
    text = compatibility.page([works, fails])
    assert "| 3.11.7 | 2.10.0 |" in text and "9 passed" in text and "works |" in text
    assert "**failed** |" in text and text.endswith("```\nbuild (exit 1): error: x\n```\n")
    assert "What failed" not in compatibility.page([works])
