"""Statistics taken back: what gates multiplied by is divided out again."""

from __future__ import annotations

import copy

import torch

from memmod.evaluation.attacks import batchnorm
from tests.unlearning.problem import modulated, split, trained_base


def images(n: int = 60) -> torch.Tensor:
    data = split(n // 4, 5)
    return data.batch(torch.arange(len(data)))


def gated(value: float = -2.0) -> torch.nn.Module:
    """The base with class 1 baked in, its gates between σ(value) and 1."""
    wf = modulated()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(value + 5 * torch.rand(memory.shape, generator=generator))
    return wf.bake(1)


def test_estimation_undoes_gates():
    x = images()
    base, network = trained_base(), gated()
    expected = batchnorm.reestimated(copy.deepcopy(base), base, iter([x]))(x)
    with torch.no_grad():
        assert (network(x) - base(x)).abs().max() > 0.1 * base(x).abs().max()
        found = batchnorm.reestimated(network, base, iter([x]))(x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_statistics_are_the_mean_of_the_batches():
    base = trained_base()
    x = images()
    network = batchnorm.reestimated(copy.deepcopy(base), base, iter([x[:20], x[20:40]]))
    first = base.features[0](x)
    mean = (first[:20].mean((0, 2, 3)) + first[20:40].mean((0, 2, 3))) / 2
    torch.testing.assert_close(network.features[1].running_mean, mean.detach())
    assert torch.equal(network.features[1].weight, base.features[1].weight)
    assert network.features[1].num_batches_tracked == 2 and not network.features[1].training


def test_units_are_norms_and_layers_without_one():
    found = batchnorm.units(trained_base(), images(4))
    assert found == {"features.1": 1, "features.4": 1}
    assert batchnorm.units(trained_base(norm=False), images(4)) == {"features.0": 1, "features.3": 1}


def test_rescaling_undoes_gates():
    x = images()
    base, network = trained_base(), gated()
    places = batchnorm.units(base, x)
    target = batchnorm.spreads(base, places, x)
    found = batchnorm.factors(network, places, x, target)
    with torch.no_grad():
        gates = network.features[0].weight.flatten(1).norm(dim=1) / (
            base.features[0].weight.flatten(1).norm(dim=1)
            * (base.features[1].weight / (base.features[1].running_var + base.features[1].eps).sqrt()).abs()
        )
    torch.testing.assert_close(found["features.1"].float(), 1 / gates, rtol=1e-3, atol=1e-3)
    again = batchnorm.spreads(network, places, x)
    torch.testing.assert_close(again["features.1"] * found["features.1"], target["features.1"])


def test_a_closed_unit_stays_closed():
    x = images()
    base = trained_base()
    network = gated()
    with torch.no_grad():
        network.features[0].weight[3] = 0
        network.features[0].bias[3] = 0
    places = batchnorm.units(base, x)
    found = batchnorm.factors(network, places, x, batchnorm.spreads(base, places, x))
    assert found["features.1"][3] == 1.0


def test_without_the_original_units_get_a_spread_of_one():
    x = images()
    network = gated()
    places = batchnorm.units(trained_base(), x)
    found = batchnorm.factors(network, places, x, None)
    spread = batchnorm.spreads(network, places, x)["features.1"]
    torch.testing.assert_close(found["features.1"] * spread, torch.ones_like(spread))
