"""Checkpoints: what is written is read back to the bit, and nothing else is accepted."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import save_file

from memmod.errors import RunError
from memmod.unlearning.checkpoint import Checkpoint, load_optimiser, optimiser_tensors


def checkpoint() -> Checkpoint:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "memories": {"a/b.memory": torch.randn(3, 5, generator=generator)},
        "generators": {"draws": generator.get_state()},
    }
    return Checkpoint({"lr": 0.1, "lambdas": [1.0, 1.0, 0.1]}, {"step": 7, "seconds": 0.1 + 0.2}, tensors)


def test_round_trip_is_exact(tmp_path):
    saved = checkpoint()
    saved.save(tmp_path / "c.safetensors")
    loaded = Checkpoint.load(tmp_path / "c.safetensors")
    assert (loaded.run, loaded.progress) == (saved.run, saved.progress)
    for group, tensors in saved.tensors.items():
        for name, tensor in tensors.items():
            assert loaded.tensors[group][name].dtype == tensor.dtype
            assert torch.equal(loaded.tensors[group][name], tensor)


def test_optimiser_state_round_trip():
    def parameters():
        generator = torch.Generator().manual_seed(1)
        return [torch.nn.Parameter(torch.randn(4, 3, generator=generator)) for _ in range(2)]

    def step(optimiser, seed):
        generator = torch.Generator().manual_seed(seed)
        for parameter in optimiser.param_groups[0]["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimiser.step()

    names = ["x.memory", "y:z.memory"]
    first, second = parameters(), parameters()
    one, two = torch.optim.Adam(first, lr=0.1), torch.optim.Adam(second, lr=0.1)
    step(one, 0)
    with torch.no_grad():
        for a, b in zip(first, second, strict=True):
            b.copy_(a)
    load_optimiser(two, names, {name: t.clone() for name, t in optimiser_tensors(one, names).items()})
    step(one, 1)
    step(two, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_missing(tmp_path):
    with pytest.raises(RunError, match="there is no checkpoint at .*nowhere"):
        Checkpoint.load(tmp_path / "nowhere")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_cut_short(tmp_path, share):
    path = tmp_path / "c.safetensors"
    checkpoint().save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(RunError, match="is damaged.*start anew"):
        Checkpoint.load(path)


def test_another_file(tmp_path):
    save_file({"weight": torch.randn(2, 2)}, tmp_path / "weights.safetensors")
    with pytest.raises(RunError, match="is not a checkpoint"):
        Checkpoint.load(tmp_path / "weights.safetensors")


def test_another_format_version(tmp_path, monkeypatch):
    monkeypatch.setattr("memmod.unlearning.checkpoint.FORMAT_VERSION", 3)
    checkpoint().save(tmp_path / "c.safetensors")
    monkeypatch.undo()
    with pytest.raises(RunError, match="format version 3, this memmod reads 2"):
        Checkpoint.load(tmp_path / "c.safetensors")


def test_every_differing_field_is_named():
    saved = checkpoint()
    saved.check_run({"lr": 0.1, "lambdas": [1.0, 1.0, 0.1]}, "c")
    with pytest.raises(RunError, match="lr was 0.1, now 0.2; seed was None, now 3"):
        saved.check_run({"lr": 0.2, "lambdas": [1.0, 1.0, 0.1], "seed": 3}, "c")


def test_a_write_that_fails_leaves_the_previous_one(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    checkpoint().save(path)

    def fail(*_):
        raise OSError("no space left")

    later = checkpoint()
    later.progress["step"] = 8
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        later.save(path)
    assert Checkpoint.load(path).progress["step"] == 7
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.safetensors"]
