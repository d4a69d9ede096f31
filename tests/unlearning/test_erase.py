"""Erasing: what is drawn anew, what is looked at, what it costs, and that the class is gone."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import pytest
import torch
from torch import nn

from memmod.errors import DataError, ModelError, RunError, SelectionError
from memmod.training import TrainConfig, accuracies, fit
from memmod.unlearning.erase import EraseConfig, default_erasing, draw_anew, erase, plan_erasure, upper_layers
from memmod.zoo import create_model
from tests.unlearning.baselines.digits import digits

SMALL = (1, 8, 8)
TRAINING = TrainConfig(epochs=12, batch_size=32, lr=3e-3, shift=1)


def base(seed: int = 0) -> nn.Module:
    return create_model("resnet", 10, SMALL, seed=seed).eval()


@functools.cache
def trained() -> nn.Module:
    network = base()
    fit(network, digits(), TRAINING)
    return network


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("resnet", SMALL, ("blocks.2", "fc")),
        ("vgg", SMALL, ("features.14", "features.15", "features.17", "features.18", "fc")),
        ("vit", SMALL, ("blocks.3", "norm", "head")),
        ("timm:resnet18", (3, 64, 64), ("layer4", "fc")),
        ("timm:convnext_atto", (3, 64, 64), ("stages.3", "head")),
        ("timm:vit_tiny_patch16_224", (3, 64, 64), ("blocks.11", "norm", "head")),
    ],
)
def test_the_last_stage_and_what_runs_behind_it(name, shape, expected):
    assert upper_layers(create_model(name, 10, shape).eval(), torch.randn(2, *shape)) == expected


def test_several_last_stages_of_which_the_first_stays():
    network, x = create_model("resnet", 10, SMALL).eval(), torch.randn(2, *SMALL)
    assert upper_layers(network, x, 2) == ("blocks.1", "blocks.2", "fc")
    assert upper_layers(network, x, 9) == upper_layers(network, x, 3) == ("blocks", "fc")


def test_a_network_without_stages_needs_names():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    with pytest.raises(ModelError, match="no stages.*reset"):
        upper_layers(network, torch.randn(2, *SMALL))


def test_only_named_layers_are_drawn_anew():
    network, fresh = create_model("resnet", 10, SMALL, seed=1), create_model("resnet", 10, SMALL, seed=2)
    before = copy.deepcopy(network.state_dict())
    draw_anew(network, fresh, ("blocks.2", "fc"))
    for name, value in network.state_dict().items():
        expected = fresh.state_dict() if name.startswith(("blocks.2.", "fc.")) else before
        assert torch.equal(value, expected[name]), name
    with pytest.raises(ModelError, match="no layer 'block'"):
        draw_anew(network, fresh, ("block",))
    with pytest.raises(ModelError, match=r"no 'fc.weight' of shape \(10, 64\)"):
        draw_anew(network, create_model("resnet", 9, SMALL), ("fc",))


def test_the_defaults_follow_from_the_base_s_training():
    with_norms, without = create_model("resnet", 10, SMALL), create_model("vit", 10, SMALL)
    assert default_erasing(with_norms, TRAINING).lr == pytest.approx(TRAINING.lr * 10 / 3)
    assert default_erasing(without, TRAINING).lr == pytest.approx(TRAINING.lr * 1.5)
    assert default_erasing(without, TRAINING).batch_size == TRAINING.batch_size // 2
    chosen = [default_erasing(network, TRAINING) for network in (with_norms, without)]
    assert [config.augmented for config in chosen] == [0.85, 1.0]
    assert [config.blocks for config in chosen] == [1, 2]
    assert {config.optimiser for config in chosen} == {"muon"}
    plan = plan_erasure(without, digits(), (3,), TRAINING, replace(chosen[1], budget=1.0))
    assert plan.reset == ("blocks.2", "blocks.3", "norm", "head") and len(without.blocks) == 4


def test_the_budget_is_a_share_of_the_images_that_the_base_saw():
    data = digits()
    plan = plan_erasure(base(), data, (3, 8), TRAINING, EraseConfig(budget=0.5, batch_size=8, augmented=0.7))
    assert plan.images == plan.steps * 8 and plan.augmented == 0.7
    assert plan.images == pytest.approx(0.5 * TRAINING.epochs * len(data.train), abs=8)
    assert set(plan.retained.train.labels.tolist()) == set(range(10)) - {3, 8}
    assert (plan.training.shift, plan.training.flip) == (TRAINING.shift, TRAINING.flip)


def test_what_cannot_be_erased_is_said_before_the_long_part():
    data, network = digits(), base()
    for classes, what in (((), "classes \\[\\]"), ((10,), "classes \\[10\\]"), (tuple(range(9)), "leave two")):
        with pytest.raises(SelectionError, match=what):
            plan_erasure(network, data, classes, TRAINING)
    lacking = replace(data, train=data.train.subset((data.train.labels != 4).nonzero().flatten()))
    with pytest.raises(DataError, match="retained training images of digits.*4"):
        plan_erasure(network, lacking, (3,), TRAINING)
    with pytest.raises(RunError, match="too few for new layers: give at least 0.297,"):
        plan_erasure(network, data, (3,), TRAINING, EraseConfig(budget=1e-3))
    with pytest.raises(ModelError, match="no layer 'top'"):
        plan_erasure(network, data, (3,), TRAINING, EraseConfig(budget=0.9, batch_size=8, reset=("top",)))
    for changes in (
        {"budget": 0.0},
        {"budget": 1.5},
        {"lr": 0.0},
        {"batch_size": 1},
        {"augmented": 1.1},
        {"blocks": 0},
    ):
        with pytest.raises(RunError, match=next(iter(changes))):
            EraseConfig(**changes)
    with pytest.raises(RunError, match="optimiser is 'sgd'; it must be one of adamw, muon"):
        EraseConfig(optimiser="sgd")


CONFIG = EraseConfig(budget=0.5, batch_size=16)


def erased(data, **options) -> nn.Module:
    network = copy.deepcopy(trained())
    plan = plan_erasure(network, data, (3,), TRAINING, CONFIG)
    erase(network, plan, base(77), **options)
    return network


@pytest.mark.slow
def test_the_class_is_gone_and_no_image_of_it_is_looked_at():
    data = digits()
    network = erased(data)
    by_class = accuracies(network, data.test, 10)[1]
    assert by_class[3] == 0.0 and min(by_class[:3] + by_class[4:]) > 0.7
    train = copy.copy(data.train)
    train.images = train.images.clone()
    train.images[train.labels == 3] = 255
    blind = erased(replace(data, train=train))
    for name, value in network.state_dict().items():
        assert torch.equal(value, blind.state_dict()[name]), name


@pytest.mark.slow
def test_it_goes_on_where_it_was_interrupted(tmp_path):
    def stop(step: int, steps: int, loss: float) -> None:
        if step == steps // 2:
            raise KeyboardInterrupt

    whole = erased(digits()).state_dict()
    checkpoint = tmp_path / "checkpoint.safetensors"
    from memmod import training

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            erased(digits(), progress=stop, checkpoint=checkpoint)
    resumed = erased(digits(), checkpoint=checkpoint, resume=True).state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
