"""A round that is killed and resumed ends with the same bits as one that is not."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from memmod.errors import RunError
from memmod.unlearning import Trainer, UnlearnConfig
from tests.unlearning.problem import dataset, modulated, quick

ROOT = Path(__file__).parents[2]
FILE = "checkpoint.safetensors"


def run(folder: Path, memories: Path, *kill: str) -> int:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.unlearning.resume_run", str(folder), str(memories), *kill]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


@pytest.mark.exhaustive
def test_killed_again_and_again(tmp_path):
    """Before any checkpoint, within a step, while a checkpoint is written, right after one, and again at the end."""
    whole, pieces = tmp_path / "whole.safetensors", tmp_path / "pieces.safetensors"
    assert run(tmp_path / "a", whole) == 0
    for kill in ("step:3", "step:11", "before-replace:12", "after-replace:15", "before-replace:22"):
        assert run(tmp_path / "b", pieces, kill) == -signal.SIGKILL
        assert not pieces.exists()
    assert run(tmp_path / "b", pieces) == 0
    expected, found = load_file(whole), load_file(pieces)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def fit(folder: Path, config: UnlearnConfig, resume: bool = False, wf=None, data=None):
    wf = wf or modulated()
    return wf, Trainer(wf, data or dataset(), config, folder, checkpoint_every=3).fit(resume)


def test_a_finished_round_resumes_to_itself(tmp_path):
    first, result = fit(tmp_path, quick())
    second, again = fit(tmp_path, quick(), resume=True)
    assert result == again
    assert all(torch.equal(a, b) for a, b in zip(first.memory_parameters(), second.memory_parameters(), strict=True))


def test_without_resume_an_earlier_round_is_not_overwritten(tmp_path):
    fit(tmp_path, quick())
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(RunError, match="holds an earlier round: resume it, delete it"):
        fit(tmp_path, quick())
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("field", "change"),
    [("lr", {"lr": 0.05}), ("seed", {"seed": 2}), ("steps", {"steps": 13}), ("lambdas", {"lambdas": (1, 1, 0)})],
)
def test_a_checkpoint_of_other_settings_is_refused_by_name(tmp_path, field, change):
    fit(tmp_path, quick())
    wf = modulated()
    before = wf.memory_state()
    with pytest.raises(RunError, match=f"belongs to another run: {field} was .*, now .*start anew"):
        fit(tmp_path, quick(**change), resume=True, wf=wf)
    assert all(torch.equal(before[name], memory) for name, memory in wf.memory_state().items())


def test_a_checkpoint_of_another_base_is_refused(tmp_path):
    fit(tmp_path, quick())
    with pytest.raises(RunError, match="base_sha256 was"):
        fit(tmp_path, quick(), resume=True, wf=modulated(norm=False))


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    fit(tmp_path, quick())
    data = dataset()
    fewer = type(data)(
        data.name, data.train.subset(torch.arange(0, len(data.train), 2)), *list(vars(data).values())[2:]
    )
    with pytest.raises(RunError, match="training_labels was"):
        fit(tmp_path, quick(), resume=True, data=fewer)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    fit(tmp_path, quick())
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:200])
    with pytest.raises(RunError, match="is damaged"):
        fit(tmp_path, quick(), resume=True)


def test_another_number_of_threads_is_warned_of(tmp_path, caplog):
    threads = torch.get_num_threads()
    fit(tmp_path, quick())
    try:
        torch.set_num_threads(threads + 1)
        with caplog.at_level(logging.WARNING):
            fit(tmp_path, quick(), resume=True)
    finally:
        torch.set_num_threads(threads)
    assert any("last bits" in record.message for record in caplog.records)


def test_how_often_checkpoints_are_written_changes_nothing(tmp_path):
    often, _ = fit(tmp_path, quick())
    never = modulated()
    Trainer(never, dataset(), quick()).fit()
    assert all(torch.equal(a, b) for a, b in zip(often.memory_parameters(), never.memory_parameters(), strict=True))
    with pytest.raises(RunError, match="checkpoint_every is 0"):
        Trainer(never, dataset(), quick(), checkpoint_every=0)
