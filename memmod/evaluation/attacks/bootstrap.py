"""Percentile intervals of a figure over resampled images (Efron, 1979)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DRAWS = 200
LEVEL = 0.95


def bootstrap(
    statistic: Callable[..., float], *samples: Tensor, draws: int = DRAWS, seed: int = 0, level: float = LEVEL
) -> tuple[float, float]:
    """The central `level` of the statistic over `draws` resamplings.

    Args:
        statistic: of tensors like the samples.
        samples: each ``[N, ...]`` is resampled by itself, N of its rows with replacement.
    """
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(draws):
        rows = [torch.randint(len(sample), (len(sample),), generator=generator) for sample in samples]
        values.append(statistic(*(sample[chosen] for sample, chosen in zip(samples, rows, strict=True))))
    tail = (1 - level) / 2
    low, high = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return low.item(), high.item()
