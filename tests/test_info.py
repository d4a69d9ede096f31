"""memmod.info says what is there, and where memmod came from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import memmod
from memmod import info
from memmod.ops import dispatch

ROOT = Path(memmod.__file__).resolve().parent.parent


def test_collect_names_versions_place_and_backends():
    facts = info.collect()
    assert facts["memmod"] == memmod.__version__
    assert Path(facts["loaded_from"]) == ROOT / "memmod"
    assert facts["torch"] == torch.__version__
    assert facts["backends"].keys() == set(dispatch.BACKENDS)
    assert facts["backends"]["reference"] is None
    assert facts["threads"] == torch.get_num_threads()


def test_main_prints_every_backend_with_its_reason(capsys, monkeypatch):
    monkeypatch.setitem(dispatch._unavailable, "cuda", "the moon is in the wrong phase")
    info.main()
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    printed = {words[0]: words[1] for words in lines if len(words) == 2}
    assert printed["reference"] == "available"
    assert printed["cuda"].startswith("not available: the moon")
    assert printed["loaded"] == f"from     {ROOT / 'memmod'}"


def test_main_prints_the_cuda_build_without_a_gpu(capsys, monkeypatch):
    built = {"extension": "_cuda.abi3.so", "kernels": ["conv", "tail"], "architectures": ["8.0", "9.0+PTX"]}
    built |= {"toolkit": "13.0", "flags": ["-O3"]}
    facts = {**info.collect(), "build": {"extension": "_cpu.so", "cuda": built}}
    monkeypatch.setattr(info, "collect", lambda: dict(facts))
    info.main()
    printed = capsys.readouterr().out.partition("CUDA build\n")[2]
    assert printed.split("\n")[:-1] == [
        "  extension     _cuda.abi3.so",
        "  kernels       conv tail",
        "  architectures 8.0 9.0+PTX",
        "  toolkit       13.0",
        "  flags         -O3",
    ]


@pytest.mark.slow
def test_runs_as_a_module():
    result = subprocess.run(
        [sys.executable, "-m", "memmod.info"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert torch.__version__ in result.stdout
    assert "backends" in result.stdout


def _package(folder: Path, extension: bool) -> Path:
    package = folder / "memmod"
    package.mkdir(parents=True)
    if extension:
        (package / "_cpu.some-abi.so").touch()
    return package


def test_says_that_a_source_folder_hides_the_installed_memmod(tmp_path, monkeypatch):
    source = _package(tmp_path / "source", extension=False)
    installed = _package(tmp_path / "site-packages", extension=True)
    monkeypatch.setattr(sys, "path", [str(source.parent), str(installed.parent)])
    message = info.shadowed(source)
    assert str(source) in message and str(installed) in message and "-e ." in message
    assert info.shadowed(installed) is None


@pytest.mark.parametrize("extensions", [(True, True), (False, False)])
def test_no_complaint_without_a_better_one_behind(tmp_path, monkeypatch, extensions):
    first = _package(tmp_path / "first", extensions[0])
    second = _package(tmp_path / "second", extensions[1])
    monkeypatch.setattr(sys, "path", [str(first.parent), str(second.parent)])
    assert info.shadowed(first) is None


def test_an_empty_path_entry_is_the_current_folder(tmp_path, monkeypatch):
    source = _package(tmp_path / "source", extension=False)
    installed = _package(tmp_path / "site-packages", extension=True)
    monkeypatch.chdir(source.parent)
    monkeypatch.setattr(sys, "path", ["", str(installed.parent)])
    assert str(installed) in info.shadowed(Path(os.curdir, "memmod").resolve())
