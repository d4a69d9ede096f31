"""Training a base: killed and resumed it ends with the same bits, and what would end it is found before it starts."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from memmod import training
from memmod.data import Dataset, TensorSplit, batches_of, load_data
from memmod.errors import DataError, ModelError, RunError
from memmod.runs import commands
from memmod.runs.commands import DataOptions
from memmod.training import TrainConfig, check_before_training, fit
from memmod.zoo import base_meta, create_model, load_base, save_base

ROOT = Path(__file__).parents[1]
COMMAND = ("train", "--model", "vit", "--epochs", "1", "--seed", "4", "--threads", "1")


def dataset(images: int = 40, classes: int = 4, shape: tuple[int, int, int] = (1, 8, 8)) -> Dataset:
    x = torch.randn(images, *shape, generator=torch.Generator().manual_seed(0))
    split = TensorSplit(x, torch.arange(images) % classes, 1.0, (0.0,), (1.0,))
    return Dataset("noise", split, split, tuple("abcdefgh"[:classes]), shape)


def run(kill: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.train_run", kill, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.exhaustive
def test_killed_again_and_again(tmp_path: Path) -> None:
    """Within a step, while a checkpoint is written, and while the base is measured."""
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    assert run("-", *COMMAND, "--out", whole).returncode == 0
    for kill in ("step:9", "before-replace:12", "measure:0"):
        killed = run(kill, *COMMAND, "--out", pieces, "--resume")
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not (pieces / "metrics.json").exists()
    assert (pieces / "base.safetensors").exists(), "the base is kept before it is measured"
    resumed = run("-", *COMMAND, "--out", pieces, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert (pieces / "base.safetensors").read_bytes() == (whole / "base.safetensors").read_bytes()
    assert (pieces / "base.json").read_bytes() == (whole / "base.json").read_bytes()
    assert sorted(path.name for path in pieces.iterdir()) == sorted(path.name for path in whole.iterdir())


class Interrupted(Exception):
    pass


def interrupted(model: nn.Module, data: Dataset, config: TrainConfig, path: Path, at: int) -> None:
    def stop(step: int, steps: int, loss: float) -> None:
        # called before the checkpoint of its own step
        if step == at + 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(model, data, config, stop, checkpoint=path, checkpoint_seconds=-1e9)


@pytest.mark.parametrize("at", [1, 4, 5, 9])
def test_dropout_norms_and_augmentation_go_on_with_the_same_bits(tmp_path: Path, monkeypatch, at: int) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(288, 4)
        )

    data, config = dataset(), TrainConfig(epochs=2, batch_size=8, shift=1, flip=True, seed=3)
    # each step is due for a checkpoint, however long the last one took
    monkeypatch.setattr(training.time, "monotonic", lambda: 0.0)
    path = tmp_path / "checkpoint.safetensors"
    expected, found = network(), network()
    loss = fit(expected, data, config)
    interrupted(found, data, config, path, at)
    found = network()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.fill_(torch.nan)
    seen: list[int] = []
    assert fit(found, data, config, lambda step, *_: seen.append(step), checkpoint=path, resume=True) == loss
    assert seen == list(range(at + 1, 11))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name]), name


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_the_last_steps_see_images_as_they_are(tmp_path: Path, monkeypatch, share: float) -> None:
    def mirrored(x: Tensor, config: TrainConfig, generator: torch.Generator) -> Tensor:
        return x.flip(3)

    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.seen = nn.Parameter(torch.ones(4)), []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x)
            return x.flatten(1)[:, :4] * self.scale

    data, config, path = dataset(), TrainConfig(epochs=2, batch_size=8, shift=1), tmp_path / "c"
    plain, changed, found = Recorder(), Recorder(), Recorder()
    fit(plain, data, config, augmented=0.0)
    monkeypatch.setattr(training, "augment", mirrored)
    fit(changed, data, config)
    fit(found, data, config, augmented=share, checkpoint=path)
    steps = round(10 * share)
    for expected, x in zip(changed.seen[:steps] + plain.seen[steps:], found.seen, strict=True):
        assert torch.equal(x, expected)
    with pytest.raises(RunError, match="augmented_steps was"):
        fit(Recorder(), data, config, augmented=0.4, checkpoint=path, resume=True)


def test_a_training_with_checkpoints_ends_as_one_without(tmp_path: Path) -> None:
    data, config = dataset(), TrainConfig(epochs=1, batch_size=8)
    models = [create_model("resnet", 4, (1, 8, 8)) for _ in range(2)]
    fit(models[0], data, config)
    fit(models[1], data, config, checkpoint=tmp_path / "c", checkpoint_seconds=0)
    assert all(map(torch.equal, models[0].state_dict().values(), models[1].state_dict().values()))


@pytest.mark.parametrize("field", ["lr", "seed", "epochs"])
def test_a_checkpoint_of_other_settings_is_refused_by_name(tmp_path: Path, field: str) -> None:
    data, config = dataset(), TrainConfig(epochs=2, batch_size=8)
    interrupted(create_model("resnet", 4, (1, 8, 8)), data, config, tmp_path / "c", 3)
    other = replace(config, **{field: getattr(config, field) + 1})
    with pytest.raises(RunError, match=f"belongs to another run: {field} was"):
        fit(create_model("resnet", 4, (1, 8, 8)), data, other, checkpoint=tmp_path / "c", resume=True)
    with pytest.raises(RunError, match="network was"):
        fit(create_model("vgg", 4, (1, 8, 8)), data, config, checkpoint=tmp_path / "c", resume=True)
    with pytest.raises(RunError, match="training_labels was"):
        fit(create_model("resnet", 4, (1, 8, 8)), dataset(39), config, checkpoint=tmp_path / "c", resume=True)


def test_another_number_of_threads_is_warned_of(tmp_path: Path, caplog, monkeypatch) -> None:
    data, config = dataset(), TrainConfig(epochs=2, batch_size=8)
    interrupted(create_model("resnet", 4, (1, 8, 8)), data, config, tmp_path / "c", 3)
    monkeypatch.setattr(training, "_environment", lambda _device: {"torch": "1", "threads": 99})
    with caplog.at_level(logging.WARNING):
        fit(create_model("resnet", 4, (1, 8, 8)), data, config, checkpoint=tmp_path / "c", resume=True)
    assert "last bits" in caplog.text


class Elsewhere(nn.Module):
    """Its one parameter lies on the meta device, and so has whatever it is given to."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, device="meta"))
        self.seen: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.device.type)
        return x.flatten(1)[:, :4] * self.scale


def test_images_and_labels_go_to_where_the_model_is(tmp_path: Path, monkeypatch) -> None:
    model, asked = Elsewhere(), []
    compute = training.F.cross_entropy
    monkeypatch.setattr(
        training.F,
        "cross_entropy",
        lambda y, t, **k: (asked.append((y.device.type, t.device.type)), compute(y, t, **k))[1],
    )
    # nothing has a value there: the loss is the first that is asked for
    with pytest.raises(RuntimeError, match="meta"):
        fit(model, dataset(), TrainConfig(epochs=1, batch_size=8, shift=1, flip=True))
    assert model.seen == ["meta"] and asked == [("meta", "meta")]


def test_accuracies_run_where_the_model_is() -> None:
    class Here(Elsewhere):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            return torch.eye(4)[torch.arange(len(x)) % 4]

    model = Here()
    assert training.accuracies(model, dataset().test, 4) == (1.0, [1.0] * 4)
    assert model.seen == ["meta"]


def test_a_checkpoint_of_another_device_is_warned_of_and_goes_on(tmp_path: Path, caplog, monkeypatch) -> None:
    data, config = dataset(), TrainConfig(epochs=2, batch_size=8)
    environment = training._environment
    with monkeypatch.context() as patch:
        patch.setattr(training, "_environment", lambda _device: environment(torch.device("cuda")))
        interrupted(create_model("resnet", 4, (1, 8, 8)), data, config, tmp_path / "c", 3)
    expected, found = create_model("resnet", 4, (1, 8, 8)), create_model("resnet", 4, (1, 8, 8), seed=1)
    fit(expected, data, config)
    with caplog.at_level(logging.WARNING):
        fit(found, data, config, checkpoint=tmp_path / "c", resume=True)
    assert "'device': 'cuda'" in caplog.text
    assert all(map(torch.equal, expected.state_dict().values(), found.state_dict().values()))


def train(out: Path, **options) -> commands.Base:
    changes = {"epochs": 1, **options.pop("changes", {})}
    return commands.train(out, DataOptions("digits"), changes=changes, **options)


def test_a_finished_run_is_resumed_to_itself(tmp_path: Path) -> None:
    train(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    train(tmp_path / "run", resume=True, progress=lambda *_: pytest.fail("trained again"))
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(RunError, match="already exists: continue an interrupted run with --resume"):
        train(tmp_path / "run")
    with pytest.raises(RunError, match="other settings: lr was"):
        train(tmp_path / "run", resume=True, changes={"lr": 0.5})
    with pytest.raises(RunError, match="exclude each other"):
        train(tmp_path / "new", resume=True, overwrite=True)


def test_the_base_is_kept_when_measuring_it_fails(tmp_path: Path, monkeypatch) -> None:
    def fails(*_):
        raise RunError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(training, "accuracies", fails)
        with pytest.raises(RunError, match="no memory"):
            train(tmp_path / "run")
    model, meta = load_base(tmp_path / "run")
    assert "accuracy" not in meta["metrics"]
    resumed = train(tmp_path / "run", resume=True, progress=lambda *_: pytest.fail("trained again"))
    assert resumed.meta["metrics"]["accuracy"] > 0.2
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == resumed.meta["metrics"]
    assert all(map(torch.equal, model.state_dict().values(), resumed.model.state_dict().values()))
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_a_failed_check_leaves_an_earlier_run_alone(tmp_path: Path, monkeypatch) -> None:
    train(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}

    def fails(*_):
        raise DataError("damaged")

    monkeypatch.setattr(commands, "check_before_training", fails)
    with pytest.raises(DataError):
        train(tmp_path / "run", overwrite=True)
    with pytest.raises(DataError):
        train(tmp_path / "new")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("images", "size", "parts"), [(9, 4, [4, 5]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 1, [1] * 3)]
)
def test_a_last_batch_of_one_joins_its_neighbour(images: int, size: int, parts: list[int]) -> None:
    found = batches_of(torch.arange(images), size)
    assert [len(part) for part in found] == parts
    assert torch.equal(torch.cat(found), torch.arange(images))


class Pooled(nn.Module):
    """BatchNorm on one value per image and channel, which one image does not define."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 8, 8), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).flatten(1))


def test_batch_norm_and_a_last_batch_of_one() -> None:
    steps: list[int] = []
    fit(Pooled(), dataset(41), TrainConfig(epochs=2, batch_size=8), lambda step, *_: steps.append(step))
    assert steps == list(range(1, 11))
    with pytest.raises(RunError, match="one image a step .*: raise batch_size"):
        fit(Pooled(), dataset(), TrainConfig(epochs=1, batch_size=1))
    with pytest.raises(RunError, match="one image a step .*: raise batch_size"):
        check_before_training(Pooled(), dataset(), TrainConfig(batch_size=1))
    check_before_training(create_model("resnet", 4, (1, 8, 8)), dataset(8), TrainConfig(batch_size=1))
    fit(create_model("resnet", 4, (1, 8, 8)), dataset(8), TrainConfig(epochs=1, batch_size=1))


class Tied(Pooled):
    """Two names for one weight, one that is a view of another, and an empty buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.fc
        self.register_buffer("view", self.conv.weight.detach()[:2])
        self.register_buffer("nothing", torch.empty(0))


class Extra(Pooled):
    def get_extra_state(self) -> object:
        return {"calls": 3}

    def set_extra_state(self, state: object) -> None:
        pass


class Sparse(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.eye(3).to_sparse())


class Refuses(Pooled):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("Input height (8) doesn't match model (224)")


class Features(Pooled):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(1)


def test_what_can_be_saved_passes_and_resumes(tmp_path: Path) -> None:
    data, config = dataset(), TrainConfig(epochs=2, batch_size=8)
    check_before_training(Tied(), data)
    torch.manual_seed(1)
    expected = Tied()
    torch.manual_seed(1)
    found = Tied()
    fit(expected, data, config)
    interrupted(found, data, config, tmp_path / "c", 3)
    found = Tied()
    fit(found, data, config, checkpoint=tmp_path / "c", resume=True)
    assert all(map(torch.equal, expected.state_dict().values(), found.state_dict().values()))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Extra, "holds _extra_state, a dict: safetensors keeps tensors alone"),
        (Sparse, "holds table, which is not a dense tensor"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), "holds 1.weight, which is not a dense tensor"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4, device="meta")), "holds 1.weight, which is not a dense"),
        (Refuses, r"does not take images of \(1, 8, 8\) \(Input height \(8\) doesn't match"),
        (Features, r"returns \(2, 8\) for 2 images of 4 classes, not logits of \(2, 4\)"),
    ],
)
def test_models_that_cannot_be_trained_or_saved(kind, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_before_training(kind(), dataset())


def test_the_check_leaves_the_model_as_it_is() -> None:
    model = Pooled()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    check_before_training(model, dataset())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator) and model.training


def test_tied_weights_of_timm_train_and_save(tmp_path: Path) -> None:
    data = dataset(8, shape=(3, 32, 32))
    model = create_model("coat_lite_tiny", 4, data.input_shape)
    check_before_training(model, data)
    save_base(tmp_path, model, base_meta("coat_lite_tiny", data, TrainConfig(), {}))
    again, _ = load_base(tmp_path)
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))


def test_classes_that_unlearning_would_refuse_are_named_at_once() -> None:
    data = load_data("digits")
    few = torch.cat([(data.train.labels != 7).nonzero().flatten(), (data.train.labels == 7).nonzero()[0]])
    short = replace(data, train=data.train.subset(few), class_names=tuple(f"digit {c}" for c in range(10)))
    model = create_model("resnet", 10, (1, 8, 8))
    with pytest.raises(DataError, match=r"training split of digits has fewer than 2 images of class 7 \('digit 7'\)"):
        check_before_training(model, short)
    without = replace(data, test=data.test.subset((data.test.labels != 3).nonzero().flatten()))
    with pytest.raises(DataError, match=r"test split of digits has no images of class 3 \('3'\)"):
        check_before_training(model, without)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_weights_keep_their_layout(layout) -> None:
    data = load_data("digits")
    network = create_model("resnet", data.num_classes, data.input_shape).to(memory_format=layout)
    fit(network, data, TrainConfig(epochs=1, batch_size=64), steps=2)
    weights = [parameter for parameter in network.parameters() if parameter.dim() == 4]
    assert weights and all(weight.is_contiguous(memory_format=layout) for weight in weights)
