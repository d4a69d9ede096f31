"""Percentile intervals: what can be counted, and what the normal distribution says."""

from __future__ import annotations

import pytest
import torch

from memmod.evaluation.attacks import bootstrap


def mean(sample: torch.Tensor) -> float:
    return sample.double().mean().item()


def test_an_interval_of_two_values():
    # The mean of two draws from (0, 1) is 0 or 1 a quarter of the time each.
    assert bootstrap.bootstrap(mean, torch.tensor([0.0, 1.0])) == (0.0, 1.0)
    assert bootstrap.bootstrap(mean, torch.tensor([3.0, 3.0, 3.0])) == (3.0, 3.0)


def test_the_width_is_that_of_the_standard_error():
    sample = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    low, high = bootstrap.bootstrap(mean, sample, draws=1000)
    half = 1.96 * sample.std().item() / 2000**0.5
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert (high + low) / 2 == pytest.approx(mean(sample), abs=half / 5)
    narrow = bootstrap.bootstrap(mean, sample, draws=1000, level=0.5)
    assert (narrow[1] - narrow[0]) / 2 == pytest.approx(0.674 / 1.96 * half, rel=0.1)


def test_samples_are_drawn_by_themselves_and_by_seed():
    seen = []

    def difference(a: torch.Tensor, b: torch.Tensor) -> float:
        seen.append((len(a), len(b)))
        return mean(a) - mean(b)

    a, b = torch.arange(30.0), torch.arange(7.0)
    first = bootstrap.bootstrap(difference, a, b, draws=20, seed=1)
    assert set(seen) == {(30, 7)} and len(seen) == 20
    assert first == bootstrap.bootstrap(difference, a, b, draws=20, seed=1)
    assert first != bootstrap.bootstrap(difference, a, b, draws=20, seed=2)
