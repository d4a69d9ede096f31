"""`torchrun ... -m memmod unlearn`: what processes write and print together, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from memmod.cli.main import app
from tests.distributed.launch import launch

TINY = ("--steps", "4", "--eval-every", "2", "--batch-size", "16", "--max-set-size", "2", "--seed", "5")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "base"
    done = CliRunner().invoke(app, ["train", "--epochs", "1", "--seed", "3", "--out", str(folder)])
    assert done.exit_code == 0, done.output
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), pytest.param(("--shard",), marks=pytest.mark.exhaustive)])
def test_two_processes_write_what_one_writes(base: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    alone = CliRunner().invoke(app, ["unlearn", "--base", str(base), "--out", str(one), *TINY])
    assert alone.exit_code == 0, alone.output
    done = launch(2, "memmod", "unlearn", "--base", str(base), "--out", str(two), *TINY, *more)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("The memories are in") == 1 and done.stderr.count("lagging") == 1
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    found, expected = load_file(two / "memory.safetensors"), load_file(one / "memory.safetensors")
    for name, memory in expected.items():
        # Four steps of at most 0.1 each; where a gradient is about zero, Adam makes a step of its rounding.
        assert (found[name] - memory).abs().max() <= 4 * 0.1 * 2**-10, name
        assert not torch.equal(memory, torch.full_like(memory, 2.0))
    settings = [json.loads((folder / "config.json").read_text())["settings"] for folder in (one, two)]
    assert settings[0] == settings[1]
    if more:
        again = launch(2, "memmod", "unlearn", "--base", str(base), "--out", str(two), *TINY)
        (message,) = [line for line in again.stderr.splitlines() if line.startswith("memmod: ")]
        assert again.returncode == 1 and message.startswith(f"memmod: the run folder {two} already exists")


LAUNCHED = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("command", ["evaluate", "train", "demo", "erase", "info"])
def test_other_commands_are_refused(command: str) -> None:
    first = CliRunner().invoke(app, [command], env={**LAUNCHED, "RANK": "0"})
    assert first.exit_code == 1
    assert f"memmod: 2 processes were started, but `memmod {command}` is the work of one" in first.stderr
    second = CliRunner().invoke(app, [command], env={**LAUNCHED, "RANK": "1"})
    assert second.exit_code == 1 and second.output == ""


def test_splitting_without_torchrun_is_refused(base: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["unlearn", "--base", str(base), "--out", str(tmp_path / "x"), *TINY, "--shard"])
    assert done.exit_code == 1 and "start it with torchrun" in done.stderr
    assert not (tmp_path / "x").exists()
