"""Images behind a Gaussian kernel."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def blurred(x: Tensor, side: int, sigma: float) -> Tensor:
    """Images ``[B, C, H, W]`` behind a Gaussian kernel of `side` × `side`, their edge pixels continued outwards."""
    distance = torch.arange(side, dtype=torch.float64) - side // 2
    weights = torch.exp(-(distance**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).to(x)
    rows, columns = (weights.view(1, 1, *shape).expand(x.shape[1], -1, -1, -1) for shape in ((side, 1), (1, side)))
    padded = nn.functional.pad(x, [side // 2] * 4, mode="replicate")
    return nn.functional.conv2d(nn.functional.conv2d(padded, rows, groups=x.shape[1]), columns, groups=x.shape[1])
