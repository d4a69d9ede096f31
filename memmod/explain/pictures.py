"""Images and maps as PNG in a `data:` address, to be shown inside of a page."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# What held the logit up, and what held it down; told apart without red and green, on light and on dark pages.
HELD_UP, HELD_DOWN = (214, 72, 40), (37, 99, 235)
# Of the sorted values the one that gets the full colour: single pixels above it would make the others pale.
FULL = 0.99
STRONGEST = 0.85


def picture(pixels: Tensor) -> str:
    """An image, uint8 ``[C, H, W]`` of 1 or 3 channels, of others the first, as a `data:` address."""
    array = pixels.permute(1, 2, 0).cpu().numpy()
    return _address(Image.fromarray(array if array.shape[2] == 3 else np.ascontiguousarray(array[:, :, 0])))


def overlay(values: Tensor) -> str:
    """A map ``[H, W]`` as colours to lay over its image: opaque where large, by sign in one of two colours."""
    scale = torch.quantile(values.abs().flatten(), FULL) or values.abs().max()
    strength = (values.abs() / scale).clamp(max=1) if scale > 0 else torch.zeros_like(values)
    up = (values > 0).cpu().numpy()
    colours = np.where(up[:, :, None], np.array(HELD_UP, np.uint8), np.array(HELD_DOWN, np.uint8))
    alpha = (255 * STRONGEST * strength).round().to(torch.uint8).cpu().numpy()
    return _address(Image.fromarray(np.dstack([colours, alpha]), "RGBA"))


def _address(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
