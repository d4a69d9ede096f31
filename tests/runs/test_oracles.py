"""Oracles never see what they are trained without, are trained once, and go on where they were interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from memmod.data import TensorSplit, load_data
from memmod.errors import DataError, RunError, SelectionError
from memmod.runs import commands
from memmod.runs.oracles import missing, oracle_folder, oracle_seeds, retrain
from memmod.runs.restore import Base, restore_base

pytestmark = pytest.mark.slow

EPOCHS = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("oracles") / "base"
    return commands.train(folder, commands.DataOptions(), "vgg", changes={"epochs": EPOCHS, "seed": 4})


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def untrained(state) -> None:
    raise AssertionError(f"oracle {state.number} is trained again")


def test_an_oracle_never_sees_the_class(base, digits, tmp_path):
    seen = []

    class Watched(TensorSplit):
        def batch(self, indices):
            seen.extend(self.labels[indices].tolist())
            return super().batch(indices)

        def subset(self, indices):
            return Watched(self.images[indices], self.labels[indices], *self._normalisation)

    train = digits.train
    watched = replace(digits, train=Watched(train.images, train.labels, *train._normalisation))
    (oracle,) = retrain(base, [8], [11], watched, tmp_path)
    assert set(seen) == set(range(10)) - {8}
    assert oracle.metrics["acc_forget"] == [0.0]
    assert oracle.metrics["class_accuracy"][0] > 0.5


def test_an_oracle_is_trained_once(base, digits, tmp_path):
    states = []
    first = retrain(base, [8, 3], [11, 12], digits, tmp_path, progress=states.append)
    assert {(state.number, state.count) for state in states} == {(1, 2), (2, 2)}
    again = retrain(base, [3, 8, 8], [11, 12], digits, tmp_path, progress=untrained)
    for one, other in zip(first, again, strict=True):
        assert one.folder == other.folder
        assert not torch.equal(first[0].network.fc.weight, first[1].network.fc.weight)
        for name, value in one.network.state_dict().items():
            assert torch.equal(value, other.network.state_dict()[name])
    assert missing(base, [8, 3], [11, 12, 13], digits, tmp_path) == 1


def test_other_settings_or_data_are_another_oracle(base, digits, tmp_path):
    kept = (digits.train.labels != 8).nonzero().flatten()
    few = replace(digits, train=digits.train.subset(kept[1:]))
    folders = {
        retrain(base, without, [seed], data, tmp_path)[0].folder
        for without, seed, data in (([8], 11, digits), ([8], 12, digits), ([3], 11, digits), ([8], 11, few))
    }
    assert len(folders) == 4
    # images of the class that is left out make no difference
    without = replace(digits, train=digits.train.subset(kept))
    assert retrain(base, [8], [11], without, tmp_path, progress=untrained)[0].folder in folders


def test_a_killed_oracle_goes_on_and_comes_out_the_same(base, digits, tmp_path):
    (expected,) = retrain(base, [8], [11], digits, tmp_path / "whole")

    def kill(state):
        if state.step == state.steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retrain(base, [8], [11], digits, tmp_path / "killed", progress=kill)
    assert missing(base, [8], [11], digits, tmp_path / "killed") == 1
    (found,) = retrain(base, [8], [11], digits, tmp_path / "killed")
    for name, value in expected.network.state_dict().items():
        assert torch.equal(value, found.network.state_dict()[name]), name
    assert not list(Path(found.folder).glob("checkpoint*"))


def test_oracles_lie_beside_the_base_and_begin_from_other_weights(base):
    assert oracle_folder(base) == base.folder.parent / "base-oracles"
    assert oracle_seeds(base, 3) == [5, 6, 7]


def test_classes_that_cannot_be_left_out_are_refused(base, digits, tmp_path):
    with pytest.raises(SelectionError, match="class 10 cannot be left out.*0 to 9"):
        retrain(base, [10], [0], digits, tmp_path)
    with pytest.raises(SelectionError, match="at least one must be named"):
        retrain(base, [], [0], digits, tmp_path)
    with pytest.raises(SelectionError, match="leaves 1; a network needs at least 2"):
        retrain(base, range(9), [0], digits, tmp_path)
    assert not list(tmp_path.iterdir())


def test_data_without_a_class_that_stays_are_refused(base, digits, tmp_path):
    lacking = replace(digits, train=digits.train.subset((digits.train.labels != 3).nonzero().flatten()))
    with pytest.raises(DataError, match="no images of class 3"):
        retrain(base, [8], [0], lacking, tmp_path)


def test_a_pretrained_base_cannot_be_retrained(base, digits, tmp_path):
    folder = tmp_path / "pretrained"
    folder.mkdir()
    for name in ("base.safetensors", "base.json", "metrics.json"):
        (folder / name).write_bytes((base.folder / name).read_bytes())
    config = (base.folder / "config.json").read_text().replace('"pretrained": false', '"pretrained": true')
    (folder / "config.json").write_text(config)
    with pytest.raises(RunError, match="starts from pretrained weights"):
        retrain(restore_base(folder), [8], [0], digits, tmp_path / "oracles")


def test_a_damaged_oracle_is_named(base, digits, tmp_path):
    (oracle,) = retrain(base, [8], [11], digits, tmp_path)
    weights = oracle.folder / "base.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(DataError, match="base.safetensors"):
        retrain(base, [8], [11], digits, tmp_path)
