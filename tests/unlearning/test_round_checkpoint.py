"""Checkpoints: what is written is read back to the bit, and nothing else is accepted."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from memmod.errors import RunError
from memmod.files.checkpoint import FILE_NAME, Checkpoint, load_optimiser, optimiser_tensors
from memmod.files.sealed import seal
from memmod.unlearning import Trainer
from tests.unlearning.problem import dataset, modulated, quick


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
    monkeypatch.setattr("memmod.files.checkpoint.FORMAT_VERSION", 3)
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


def rewrite(path, edit=None, tensors=None, sealed: bool = False) -> None:
    """The checkpoint at `path` with another card or other tensors, and hashes that fit them or not."""
    with safe_open(str(path), framework="pt") as file:
        card = json.loads(file.metadata()["card"])
    if edit is not None:
        edit(card)
    tensors = tensors or load_file(path)
    save_file(tensors, path, metadata={"card": json.dumps(seal(card, tensors) if sealed else card)})


def test_changed_tensors_and_cards_are_noticed(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint().save(path)
    whole, tensors = path.read_bytes(), load_file(path)
    rewrite(path, tensors={name: tensor + 1 for name, tensor in tensors.items()})
    with pytest.raises(RunError, match="its tensors do not fit"):
        Checkpoint.load(path)
    for edit in (lambda card: card["progress"].update(step=8), lambda card: card.update(run={})):
        path.write_bytes(whole)
        rewrite(path, edit)
        with pytest.raises(RunError, match="its card_sha256 does not fit"):
            Checkpoint.load(path)


@pytest.mark.parametrize("field", ["run", "progress", "tensors_sha256", "card_sha256"])
def test_a_card_that_lacks_or_has_another_type(tmp_path, field):
    path = tmp_path / "c.safetensors"
    checkpoint().save(path)
    whole = path.read_bytes()
    rewrite(path, lambda card: card.pop(field))
    with pytest.raises(RunError, match=f"field `{field}`"):
        Checkpoint.load(path)
    for value in (None, [], 5):
        path.write_bytes(whole)
        rewrite(path, lambda card, value=value: card.update({field: value}))
        with pytest.raises(RunError, match=f"at \\$.{field}"):
            Checkpoint.load(path)


@pytest.fixture(scope="module")
def halfway(tmp_path_factory) -> bytes:
    """The checkpoint of a finished round."""
    folder = tmp_path_factory.mktemp("round")
    Trainer(modulated(), dataset(), quick(), folder).fit()
    return (folder / FILE_NAME).read_bytes()


def _set(**values):
    return lambda card: card["progress"].update(values)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda card: card["progress"].pop("best"), "missing required field `best`"),
        (lambda card: card["progress"]["best"].update(acc_forget=[]), "of [0, 4] classes"),
        (lambda card: card["progress"]["best"].update(acc_forget="x"), "$.best.acc_forget"),
        (_set(history=[]), "$.history"),
        (_set(history=[1]), "$.history[0]"),
        (_set(since_evaluation=[[1.0]]), "$.since_evaluation[0]"),
        (_set(step=-1), "$.step (it is -1)"),
        (_set(step=10**30), "of 12"),
        (_set(seconds="1"), "$.seconds"),
        (_set(warned=5), "$.warned"),
        (_set(environment=[]), "$.environment"),
    ],
)
def test_progress_that_cannot_be(tmp_path, halfway, edit, words):
    resume(tmp_path, halfway, words, edit)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda key, t: None if key.startswith("best/") else t, "no best"),
        (lambda key, t: None if key.startswith("generators/") else t, "no generators"),
        (lambda key, t: None if key == "generators/draws" else t, "draws"),
        (lambda key, t: t[:9] if key == "generators/draws" else t, "does not fit this round"),
        (lambda key, t: t.float() if key == "generators/cpu" else t, "does not fit this round"),
        (lambda key, t: t[:, 1:] if key.startswith("best/") else t, "has shape"),
        (lambda key, t: t[:, 1:] if key.startswith("memories/") else t, "has shape"),
        (lambda key, t: t * float("nan") if key.startswith("memories/") else t, "not finite"),
        (lambda key, t: t[:, 1:] if key.endswith(":exp_avg") else t, "fits none of the memories"),
    ],
)
def test_tensors_of_another_round(tmp_path, halfway, change, words):
    changed = {}
    (tmp_path / FILE_NAME).write_bytes(halfway)
    for key, tensor in load_file(tmp_path / FILE_NAME).items():
        tensor = change(key, tensor)
        if tensor is not None:
            changed[key] = tensor.contiguous()
    resume(tmp_path, halfway, words, tensors=changed)


def test_optimiser_state_of_another_memory(tmp_path, halfway):
    (tmp_path / FILE_NAME).write_bytes(halfway)
    tensors = load_file(tmp_path / FILE_NAME)
    key = next(key for key in tensors if key.startswith("optimiser/"))
    tensors["optimiser/nowhere.memory:exp_avg"] = tensors.pop(key)
    resume(tmp_path, halfway, "'nowhere.memory:exp_avg'", tensors=tensors)


def resume(folder, content: bytes, words: str, edit=None, tensors=None) -> None:
    """A round refuses a checkpoint that was changed and sealed anew, and leaves its memories as they were."""
    path = folder / FILE_NAME
    path.write_bytes(content)
    rewrite(path, edit, tensors, sealed=True)
    wf = modulated()
    before = wf.memory_state()
    with pytest.raises(RunError) as caught:
        Trainer(wf, dataset(), quick(), folder).fit(resume=True)
    assert str(path) in str(caught.value) and words in str(caught.value)
    assert all(torch.equal(memory, before[name]) for name, memory in wf.memory_state().items())
