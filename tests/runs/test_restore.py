"""Run folders read back: a changed or exchanged file is refused with its name and field; what fits loads."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from memmod import zoo
from memmod.data import load_data
from memmod.errors import DataError, MemmodError, MemoryFileError, RunError
from memmod.files.sealed import CARD_SHA256, TENSORS_SHA256, seal
from memmod.files.state_hash import state_sha256
from memmod.memory_file import read_card
from memmod.runs import restore
from memmod.runs.restore import restore_base, restore_unlearned
from tests.fuzz_files import make_runs


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two pairs of runs, of other seeds, each made in the same place."""
    folder = tmp_path_factory.mktemp("runs")
    return folder, make_runs(folder, 1), make_runs(folder, 0)


@pytest.fixture
def runs(made):
    """The folder of runs, whole; what a test changes there is put back for the next."""
    folder, other, files = made
    for run, contents in files.items():
        shutil.rmtree(folder / run, ignore_errors=True)
        (folder / run).mkdir()
        for name, content in contents.items():
            (folder / run / name).write_bytes(content)
    return folder


def change(path, edit) -> None:
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def refused(error: type[MemmodError], load, *words: str) -> None:
    with pytest.raises(error) as caught:
        load()
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.slow
def test_what_is_whole_loads(runs):
    unlearned = restore_unlearned(runs / "unlearned")
    assert unlearned.wf.class_names == unlearned.load_data().class_names == tuple("0123456789")
    assert unlearned.run.metrics()["best"]["acc_forget"]


@pytest.mark.parametrize("value", [[], None, "x", 5])
@pytest.mark.parametrize("run", ["base", "unlearned"])
def test_settings_of_another_type(runs, run, value):
    change(runs / run / "config.json", lambda config: config.update(settings=value))
    refused(RunError, lambda: restore_unlearned(runs / "unlearned"), f"{run}/config.json", "`object`", "$.settings")


FIELDS = [("base", name) for name in ("data", "data_root", "image_size", "model", "epochs")]
FIELDS += [("unlearned", name) for name in ("data", "data_root", "image_size", "base", "skip")]


@pytest.mark.parametrize(("run", "name"), FIELDS)
def test_a_setting_that_lacks_or_has_another_type(runs, run, name):
    path = runs / run / "config.json"
    whole = path.read_text()
    change(path, lambda config: config["settings"].pop(name))
    refused(RunError, lambda: restore_unlearned(runs / "unlearned"), f"{run}/config.json", f"`{name}`", "$.settings")
    for value in (5.5, {}, [5], True):
        path.write_text(whole)
        change(path, lambda config, value=value: config["settings"].update({name: value}))
        refused(RunError, lambda: restore_unlearned(runs / "unlearned"), f"{run}/config.json", f"at $.settings.{name}")


@pytest.mark.parametrize("size", [0, -8, 2**17, 10**400])
def test_an_image_size_that_cannot_be(runs, size):
    change(runs / "unlearned" / "config.json", lambda config: config["settings"].update(image_size=size))
    refused(RunError, lambda: restore_unlearned(runs / "unlearned"), "$.settings.image_size")


@pytest.mark.parametrize("name", ["seed", "lr", "steps", "lambdas", "objective", "skip"])
def test_memories_of_other_settings_than_the_run(runs, name):
    config = runs / "unlearned" / "config.json"
    change(config, lambda config: config["settings"].update({name: ["other"] if name == "skip" else 77}))
    refused(RunError, lambda: restore_unlearned(runs / "unlearned"), str(config), "are not of one run", f"{name} was")


def test_files_of_another_run(runs, made):
    _, other, _ = made
    (runs / "unlearned" / "memory.safetensors").write_bytes(other["unlearned"]["memory.safetensors"])
    refused(RunError, lambda: restore_unlearned(runs / "unlearned"), "are not of one run", "seed was 1, but is 0")
    for name in ("base.json", "base.safetensors"):
        (runs / "base" / name).write_bytes(other["base"][name])
        # First only one of the two, whose hash does not fit the other; then both.
        expected = (DataError, "tensors do not fit") if name == "base.json" else (RunError, "seed was 1, but is 0")
        refused(expected[0], lambda: restore_base(runs / "base"), str(runs / "base"), expected[1])


def test_a_base_that_is_not_where_the_run_says(runs):
    (runs / "base").rename(runs / "moved")
    refused(RunError, lambda: restore_unlearned(runs / "unlearned"), "unlearned/config.json", "not there", "--base")
    assert restore_unlearned(runs / "unlearned", runs / "moved").wf.num_classes == 10
    shutil.rmtree(runs / "moved")


@pytest.mark.parametrize("spec", ["digit", "", "folder:/nowhere", "folder:a\0b", "folder:" + "a" * 5000])
def test_data_that_are_not_there(runs, spec):
    change(runs / "unlearned" / "config.json", lambda config: config["settings"].update(data=spec))
    refused(DataError, lambda: restore_unlearned(runs / "unlearned").load_data(), "data")


def test_data_of_another_shape_are_refused(runs, monkeypatch):
    """MNIST's classes have the same names as those of the digits."""
    digits = load_data()
    monkeypatch.setattr(restore, "load_data", lambda *_, **__: replace(digits, name="mnist", input_shape=(1, 28, 28)))
    refused(DataError, lambda: restore_unlearned(runs / "unlearned").load_data(), "mnist", "(1, 28, 28)", "(1, 8, 8)")


def test_class_names_of_the_memories_and_of_the_base(runs):
    path = runs / "unlearned" / "memory.safetensors"
    card, tensors = read_card(path), load_file(path)
    card["class_names"] = card["class_names"][::-1]
    save_file(tensors, path, metadata={"card": json.dumps(seal(card, tensors))})
    refused(MemoryFileError, lambda: restore_unlearned(runs / "unlearned"), str(path), "names other classes")


@pytest.mark.parametrize("name", ["model", "num_classes", "input_shape", "class_names", TENSORS_SHA256, CARD_SHA256])
def test_a_base_card_that_lacks_a_field(runs, name):
    change(runs / "base" / "base.json", lambda card: card.pop(name))
    refused(DataError, lambda: restore_base(runs / "base"), "base/base.json", name)


@pytest.mark.parametrize("resealed", [False, True])
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": 5}, "$.model (it is 5)"),
        ({"model": ""}, "$.model"),
        ({"num_classes": "10"}, "$.num_classes (it is '10')"),
        ({"num_classes": 9}, "num_classes is 9, but class_names holds 10"),
        ({"num_classes": 10**9}, "num_classes is 1000000000"),
        ({"input_shape": [8, 8]}, "$.input_shape"),
        ({"input_shape": [1, 8, 0]}, "$.input_shape[2] (it is 0)"),
        ({"input_shape": [1, 8, 10**9]}, "$.input_shape[2]"),
        ({"input_shape": [4096, 4096, 4096]}, "more than 67108864 values"),
        ({"class_names": ["0"] * 10}, "class_names repeats '0'"),
        ({"class_names": "0123456789"}, "$.class_names"),
        ({"class_names": [*range(10)]}, "$.class_names[0] (it is 0)"),
        ({"training": []}, "$.training"),
        ({"metrics": None}, "$.metrics"),
        ({"version": 99}, "format version 99"),
    ],
)
def test_a_base_card_that_cannot_be(runs, changed, words, resealed):
    path = runs / "base" / "base.json"
    card = json.loads(path.read_text()) | changed
    path.write_text(json.dumps(seal(card, load_file(runs / "base" / "base.safetensors")) if resealed else card))
    refused(DataError, lambda: restore_base(runs / "base"), str(path), words)


@pytest.mark.parametrize("model", ["resnet81", "timm:nothing", "hf-hub:a/b"])
def test_a_base_of_an_unknown_network(runs, model):
    path = runs / "base" / "base.json"
    card = json.loads(path.read_text()) | {"model": model}
    path.write_text(json.dumps(card))
    refused(DataError, lambda: restore_base(runs / "base"), str(path), "card_sha256")
    path.write_text(json.dumps(seal(card, load_file(runs / "base" / "base.safetensors"))))
    refused(DataError, lambda: restore_base(runs / "base"), str(path), "unknown model")


def test_changed_weights_and_names_are_noticed(runs):
    weights, card = runs / "base" / "base.safetensors", runs / "base" / "base.json"
    change(card, lambda card: card["class_names"].reverse())
    refused(DataError, lambda: restore_base(runs / "base"), str(card), "card_sha256 does not fit")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    change(card, lambda card: card["class_names"].reverse())
    refused(DataError, lambda: restore_base(runs / "base"), str(weights), "tensors do not fit")


def test_an_older_base_loads_with_a_word(runs, caplog):
    before = state_sha256(restore_base(runs / "base").model)
    for name in (TENSORS_SHA256, CARD_SHA256, "version"):
        change(runs / "base" / "base.json", lambda card, name=name: card.pop(name))
    with caplog.at_level(logging.WARNING, logger="memmod"):
        assert state_sha256(restore_base(runs / "base").model) == before
    assert ["base.json holds no hash" in record.getMessage() for record in caplog.records] == [True]


def test_an_accuracy_that_there_is_none_of_is_null(tmp_path):
    meta = zoo.base_meta("resnet", load_data(), zoo.TrainConfig(), {"class_accuracy": [0.5, float("nan")]})
    zoo.save_base(tmp_path, zoo.create_model("resnet", 10, (1, 8, 8)), meta)
    assert zoo.load_base(tmp_path)[1]["metrics"] == {"class_accuracy": [0.5, None]}


@pytest.mark.parametrize("meta", [{"num_classes": 9}, {"class_names": ["a", "a"]}, {"note": float("inf")}])
def test_a_base_that_could_not_be_read_again_is_not_written(tmp_path, meta):
    whole = zoo.base_meta("resnet", load_data(), zoo.TrainConfig(), {})
    with pytest.raises(DataError, match="nothing was written"):
        zoo.save_base(tmp_path, zoo.create_model("resnet", 10, (1, 8, 8)), whole | meta)
    assert not list(tmp_path.iterdir())


def test_weights_of_the_same_hash_but_another_network(tmp_path):
    meta = zoo.base_meta("resnet", load_data(), zoo.TrainConfig(), {})
    zoo.save_base(tmp_path, torch.nn.Linear(3, 3), meta)
    refused(DataError, lambda: zoo.load_base(tmp_path), "are not those of 'resnet'")
