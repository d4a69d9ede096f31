"""Maps that know nothing of the network, which any other must beat to say something."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from memmod.explain.placement import onto_image
from memmod.model import ModulatedModel

# Rows and columns of noise that a smooth random map is interpolated from.
NOISE_GRID = 7


def brightness(_wf: ModulatedModel, x: Tensor, _classes: Tensor) -> Tensor:
    """The mean of the channels in the units of the normalised input ``[B, C, H, W]``: ``[B, H, W]``."""
    return x.mean(1)


def random(_wf: ModulatedModel, x: Tensor, _classes: Tensor, seed: int = 0) -> Tensor:
    """Gaussian noise ``[B, H, W]``, drawn for each image from the seed and the image's values."""
    return torch.stack([_noise(image, image.shape[-2:], seed) for image in x])


def smooth_random(_wf: ModulatedModel, x: Tensor, _classes: Tensor, seed: int = 0) -> Tensor:
    """As `random`, but drawn on a grid of 7 × 7 and interpolated: what smoothness alone is worth."""
    grid = (NOISE_GRID, NOISE_GRID)
    cells = torch.stack([_noise(image, grid, seed).flatten() for image in x])
    return onto_image(cells, grid, tuple(x.shape[-2:]))


def _noise(image: Tensor, shape: tuple[int, int], seed: int) -> Tensor:
    values = image.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    generator = torch.Generator().manual_seed(zlib.crc32(values, seed))
    return torch.randn(tuple(shape), generator=generator).to(image.device)
