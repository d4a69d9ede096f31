from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from memmod import zoo
from memmod.data import load_data
from memmod.errors import DataError, ModelError, RunError
from memmod.files.sealed import seal


@pytest.mark.parametrize("name", zoo.SMALL)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_small_networks(name: str, shape: tuple[int, int, int]) -> None:
    model = zoo.create_model(name, 7, shape)
    assert model(torch.randn(2, *shape)).shape == (2, 7)
    assert model.default_cfg["input_size"] == shape
    assert model.get_classifier().out_features == 7


def test_weights_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a, b, c = (zoo.create_model("resnet", 10, (1, 8, 8), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.fc.weight, b.fc.weight) and not torch.equal(a.fc.weight, c.fc.weight)


def test_timm_models_by_name() -> None:
    for name in ("resnet10t", "timm:resnet10t"):
        model = zoo.create_model(name, 5, (1, 32, 32))
        assert model(torch.randn(2, 1, 32, 32)).shape == (2, 5)
        assert tuple(model.pretrained_cfg["input_size"]) == (1, 32, 32)
    vit = zoo.create_model("vit_tiny_patch16_224", 5, (3, 32, 32))
    assert vit(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_unknown_models() -> None:
    with pytest.raises(ModelError, match="unknown model 'resnet81'; .* such as .*'resnet18'"):
        zoo.create_model("resnet81", 10, (3, 32, 32))
    with pytest.raises(ModelError, match="8 to 64 pixels, not 224"):
        zoo.create_model("resnet", 10, (3, 224, 224))
    with pytest.raises(ModelError, match="not a multiple of 4"):
        zoo.create_model("vit", 10, (1, 30, 30))
    with pytest.raises(ModelError, match="has no pretrained weights"):
        zoo.create_model("vgg", 10, (1, 28, 28), pretrained=True)


@pytest.mark.slow
def test_training_learns_and_repeats(tmp_path: Path) -> None:
    digits = load_data()
    config = replace(zoo.default_training("resnet", digits), epochs=4)
    models = [zoo.create_model("resnet", 10, digits.input_shape) for _ in range(2)]
    seen: list[int] = []
    metrics = [zoo.train_model(model, digits, config, lambda step, steps, loss: seen.append(steps)) for model in models]
    assert metrics[0]["accuracy"] > 0.85
    assert all(torch.equal(v, models[1].state_dict()[k]) for k, v in models[0].state_dict().items())
    assert set(seen) == {4 * 15} and len(seen) == 2 * 4 * 15

    zoo.save_base(tmp_path, models[0], zoo.base_meta("resnet", digits, config, metrics[0]))
    again, meta = zoo.load_base(tmp_path)
    assert meta["metrics"]["accuracy"] == metrics[0]["accuracy"] and meta["class_names"] == list("0123456789")
    x = digits.test.batch(torch.arange(5))
    with torch.no_grad():
        assert torch.equal(again(x), models[0](x))


def test_divergence_is_an_error() -> None:
    digits = load_data()
    model = zoo.create_model("resnet", 10, digits.input_shape)
    with torch.no_grad():
        model.fc.weight.fill_(float("inf"))
    with pytest.raises(RunError, match="at step 1 of"):
        zoo.train_model(model, digits, replace(zoo.default_training("resnet", digits), epochs=1))
    with pytest.raises(RunError, match="epochs is 0"):
        zoo.TrainConfig(epochs=0)


def test_augmentation_shifts_and_mirrors_each_sample() -> None:
    x = torch.randn(64, 2, 5, 5)
    generator = torch.Generator().manual_seed(0)
    mirrored = zoo.augment(x, zoo.TrainConfig(flip=True), generator)
    same = (mirrored == x).flatten(1).all(1)
    assert 10 < same.sum() < 54 and torch.equal(mirrored[~same], x[~same].flip(3))
    shifted = zoo.augment(x, zoo.TrainConfig(shift=1), generator)
    centre = x[:, :, 2, 2]
    found = torch.stack([(shifted[:, :, 2 + dy, 2 + dx] == centre).all(1) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    assert (found.sum(0) == 1).all() and (found.sum(1) > 0).all()


def test_bad_bases(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run `memmod train` first"):
        zoo.load_base(tmp_path)
    digits = load_data()
    model = zoo.create_model("resnet", 10, digits.input_shape)
    zoo.save_base(tmp_path, model, zoo.base_meta("resnet", digits, zoo.TrainConfig(), {}))
    weights, card = tmp_path / "base.safetensors", tmp_path / "base.json"
    content = weights.read_bytes()
    weights.write_bytes(content[:-10])
    with pytest.raises(DataError, match="damaged or cut short"):
        zoo.load_base(tmp_path)
    weights.write_bytes(content)
    meta = json.loads(card.read_text())
    card.write_text(json.dumps(seal(meta | {"model": "vgg"}, load_file(weights))))
    with pytest.raises(DataError, match="are not those of 'vgg'"):
        zoo.load_base(tmp_path)
    card.write_text("{")
    with pytest.raises(DataError, match="damaged or cut short"):
        zoo.load_base(tmp_path)
