"""The README: its Python runs as written, and what its commands name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from memmod.cli.main import app
from memmod.data import NAMES

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_python_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) >= 4
    names: dict = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"README.md, snippet {number + 1}", "exec"), names)
    assert (tmp_path / "digits.safetensors").exists()


def test_commands_and_options_exist():
    commands = get_command(app).commands
    lines = re.findall(r"^memmod (\w+)(.*)$", README, re.M)
    assert {name for name, _ in lines} >= {"train", "unlearn", "evaluate", "bake"}
    for name, options in lines:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", options)) <= known


def test_make_targets_exist():
    makefile = (Path(__file__).resolve().parent.parent / "Makefile").read_text()
    for target in set(re.findall(r"make (\w+)`", README)):
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("name", NAMES)
def test_every_data_set_is_described(name):
    assert f"`{name}`" in README
