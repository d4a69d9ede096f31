"""How alike two maps are: by the order of their pixels, and by their structure."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

# Of SSIM (Wang and others, IEEE Transactions on Image Processing 13, 2004): the window's side and deviation, and the
# constants that keep its quotients finite.
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def spearman(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's rank correlation of the pixels of maps ``[B, H, W]``: ``[B]``, fp64; 0 where a map is constant."""
    ranks = [torch.from_numpy(rankdata(maps.flatten(1).double().cpu().numpy(), axis=1)) for maps in (one, other)]
    centred = [rank - rank.mean(1, keepdim=True) for rank in ranks]
    norm = centred[0].norm(dim=1) * centred[1].norm(dim=1)
    return torch.where(norm > 0, (centred[0] * centred[1]).sum(1) / norm.clamp_min(np.finfo(float).tiny), 0.0)


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """The mean structural similarity of maps ``[B, H, W]``, each brought to [0, 1] first: ``[B]``, fp64.

    Windows are Gaussian, 11 pixels wide, and lie inside of the map, as many as fit; a smaller map has one of its size.
    """
    a, b = (_scaled(maps.double().cpu()).unsqueeze(1) for maps in (one, other))
    kernel = _kernel(min(WINDOW, *one.shape[-2:]))

    def mean(values: Tensor) -> Tensor:
        return nn.functional.conv2d(values, kernel)

    means = mean(a), mean(b)
    variances = mean(a * a) - means[0] ** 2, mean(b * b) - means[1] ** 2
    covariance = mean(a * b) - means[0] * means[1]
    brightness = (2 * means[0] * means[1] + K1**2) / (means[0] ** 2 + means[1] ** 2 + K1**2)
    return (brightness * (2 * covariance + K2**2) / (variances[0] + variances[1] + K2**2)).flatten(1).mean(1)


def _scaled(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)


def _kernel(side: int) -> Tensor:
    distance = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    weights = torch.exp(-(distance**2) / (2 * SIGMA**2))
    return (weights.outer(weights) / weights.sum() ** 2).view(1, 1, side, side)
