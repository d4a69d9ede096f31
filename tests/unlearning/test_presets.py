"""Settings: their bounds, their JSON form, the presets."""

from __future__ import annotations

import json

import pytest

from memmod.errors import RunError
from memmod.unlearning import PRESETS, UnlearnConfig, preset
from tests.unlearning.problem import modulated


@pytest.mark.slow
def test_default_follows_the_network():
    assert preset("default", modulated()) == UnlearnConfig(steps=1000, margin=1.0)
    assert preset("default", modulated(norm=False), seed=3) == UnlearnConfig(steps=800, margin=2.0, seed=3)


def test_fast_is_short_and_single():
    config = preset("fast", modulated(), lr=0.05)
    assert (config.steps, config.max_set_size, config.statistics_fraction, config.lr) == (200, 1, 0.0, 0.05)


def test_unknown_preset():
    with pytest.raises(RunError, match=f"'slow'.*{list(PRESETS)[0]}"):
        preset("slow", modulated())


def test_json_round_trip():
    config = UnlearnConfig(objective="kl-uniform", lambdas=(1, 0.5, 0), seed=7)
    assert UnlearnConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(RunError, match="unknown fields of UnlearnConfig: momentum"):
        UnlearnConfig.from_dict(config.to_dict() | {"momentum": 0.9})


@pytest.mark.parametrize("field", UnlearnConfig().to_dict())
def test_a_stored_value_of_another_type_is_named(field):
    with pytest.raises(RunError, match=rf"expected .* at \$.{field}"):
        UnlearnConfig.from_dict(UnlearnConfig().to_dict() | {field: None})
    for other in ({}, 7 if field == "objective" else "x", True):
        with pytest.raises(RunError, match=rf"expected .* at \$.{field}"):
            UnlearnConfig.from_dict(UnlearnConfig().to_dict() | {field: other})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("objective", "ce"),
        ("lambdas", (1.0, 1.0)),
        ("lambdas", (1.0, -1.0, 0.0)),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("clip", float("inf")),
        ("lambdas", (1.0, float("nan"), 0.0)),
        ("lambdas", (1.0, float("inf"), 0.0)),
        ("seed", -1),
        ("seed", 2**63),
        ("clip", -1.0),
        ("steps", 0),
        ("batch_size", 1),
        ("expansion", 0),
        ("margin", -1.0),
        ("margin", float("inf")),
        ("margin", float("nan")),
        ("max_set_size", 0),
        ("eval_every", 0),
        ("statistics_fraction", 1.5),
        ("validation_fraction", 0.0),
        ("validation_fraction", 1.0),
        ("validation_images", 0),
        ("validation_others", 0),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(RunError, match=field):
        UnlearnConfig(**{field: value})
