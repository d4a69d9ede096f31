"""What a layer's weight rows are multiplied with gives, multiplied with them, what the layer returns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from memmod.unlearning.baselines.layer_inputs import grouped, layers_of, observe_inputs, weight_inputs
from tests.unlearning.baselines.digits import digits_task


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 1, "stride": 2},
        {"padding": "same", "dilation": 2},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": (1, 0), "groups": 2},
        {"groups": 4, "padding": 1, "padding_mode": "circular"},
    ],
)
def test_patches_of_a_convolution(options):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(4, 8, 3, bias=False, **options).double()
    x = torch.randn(2, 4, 7, 6, generator=generator, dtype=torch.float64)
    out = layer(x)
    found = (weight_inputs(layer, x) @ grouped(layer).mT).unflatten(1, (2, -1))
    assert torch.allclose(found.permute(1, 0, 3, 2).reshape(out.shape), out)


def test_features_of_a_linear_layer():
    layer = nn.Linear(5, 3, bias=False)
    x = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    found = weight_inputs(layer, x) @ grouped(layer).mT
    assert torch.allclose(found.view(2, 4, 3), layer(x), atol=1e-6)


def test_every_layer_is_seen_with_the_labels_of_its_batch_and_hooks_are_gone_afterwards():
    task = digits_task()
    seen: dict[str, list] = {}
    observe_inputs(task, task.forget, lambda name, x, labels: seen.setdefault(name, []).append((len(x), labels)))
    assert list(seen) == list(layers_of(task.network)) == ["features.0", "features.3", "head"]
    for calls in seen.values():
        assert torch.equal(torch.cat([labels for _, labels in calls]), task.forget.labels)
        assert sum(count for count, _ in calls) == len(task.forget)
    count = len(seen["head"])
    task.network(torch.zeros(1, 1, 8, 8))
    assert len(seen["head"]) == count
