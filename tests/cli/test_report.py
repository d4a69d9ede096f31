"""`memmod report`: pages of runs that the other commands made, figures as files, and one message for each error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from memmod.report import library
from tests.cli.test_main import TINY, fail, succeed
from tests.report.pages import Parsed, data_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    succeed("train", "--model", "vgg", "--epochs", 1, "--out", folder / "base")
    succeed("unlearn", "--base", folder / "base", "--out", folder / "run", "--preset", "fast", *TINY)
    succeed("erase", folder / "run", "--forget", "8", "--budget", 0.4, "--batch-size", 4)
    return folder


def test_the_page_of_a_run_grows_with_what_is_found(runs):
    output = succeed("report", runs / "run")
    page = runs / "run/report.html"
    assert f"The page is in {page}: file://" in output
    text = Parsed(page.read_text(encoding="utf-8")).text
    assert "Not measured on test images yet" in text and "VGG on digits" in text
    assert "classifier head" in text and "parameters of the base" in text
    succeed("evaluate", runs / "run", "--sets", "2", "--sets-per-size", 1)
    succeed("report", runs / "run")
    html = page.read_text(encoding="utf-8")
    assert "Not measured on test images yet" not in Parsed(html).text
    assert len(data_of(html)[0]["measured"]) == 11


def test_bases_and_erased_networks_have_pages(runs):
    succeed("report", runs / "base")
    assert "which forgets nothing" in Parsed((runs / "base/report.html").read_text(encoding="utf-8")).text
    succeed("report", runs / "run-erased-8")
    text = Parsed((runs / "run-erased-8/report.html").read_text(encoding="utf-8")).text
    assert "VGG on digits without 8" in text and "points from the original network" in text


def test_figures_are_written_where_they_are_asked_for(runs, tmp_path):
    succeed("evaluate", runs / "run-erased-8")
    output = succeed("report", runs / "run-erased-8", "--png", tmp_path / "png", "--pdf", tmp_path / "pdf")
    assert (tmp_path / "png/accuracies.png").exists() and (tmp_path / "pdf/accuracies.pdf").exists()
    assert "accuracies.png" in output
    assert "already there" in fail("report", runs / "run-erased-8", "--png", tmp_path / "png")
    succeed("report", runs / "run-erased-8", "--png", tmp_path / "png", "--overwrite")


def test_errors_are_one_message(runs, tmp_path, monkeypatch):
    assert "there is no run folder" in fail("report", tmp_path / "nothing")
    library.bundle.cache_clear()
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    assert "pip install vl-convert-python" in fail("report", runs / "base")


def test_help_has_examples():
    output = succeed("report", "--help")
    assert "Examples" in output and "$ memmod report" in output
