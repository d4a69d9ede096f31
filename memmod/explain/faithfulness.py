"""Whether a map shows what the network looks at: the class's probability as pixels come or go in the map's order.

Insertion and deletion of RISE (arXiv 1806.07421): pixels of the image replace those of a blurred one, highest first, or
turn black; the figure is the area under the class's probability over the share of pixels, from 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memmod.errors import SelectionError
from memmod.explain.blur import blurred
from memmod.model import ModulatedModel


@dataclass(frozen=True)
class FaithfulnessConfig:
    """How pixels come and go.

    Args:
        steps: equal shares of the pixels, one after the other; the curve has a point more.
        blur: side of the Gaussian kernel of the image that insertion starts from, odd; RISE's is 11.
        sigma: its standard deviation in pixels; RISE's is 5.
        seed: of the order of pixels that a map does not tell apart, and of what else is drawn.
        images: how many images `measure_faithfulness` takes of a split.
        checked: how many of these it makes a second map of, for the checks.
        batch_size: samples at a time.

    Raises:
        SelectionError: a number out of its range.
    """

    steps: int = 28
    blur: int = 11
    sigma: float = 5.0
    seed: int = 0
    images: int = 400
    checked: int = 100
    batch_size: int = 64

    def __post_init__(self) -> None:
        if (
            min(self.steps, self.images, self.checked, self.batch_size) < 1
            or self.blur < 1
            or self.blur % 2 == 0
            or not self.sigma > 0
        ):
            raise SelectionError(
                f"steps is {self.steps}, images {self.images}, checked {self.checked}, batch_size {self.batch_size}, "
                f"blur {self.blur} and sigma {self.sigma}; blur must be odd, sigma above 0, the others at least 1"
            )


@dataclass(frozen=True)
class Curves:
    """The class's probability ``[B, steps + 1]`` as pixels are inserted, and as they are deleted."""

    insertion: Tensor
    deletion: Tensor

    def areas(self) -> tuple[Tensor, Tensor]:
        """The areas under both ``[B]``, by trapezoids: insertion is better high, deletion low."""
        return area(self.insertion), area(self.deletion)


def area(curve: Tensor) -> Tensor:
    """The area under curves ``[B, S + 1]`` over [0, 1], by trapezoids: ``[B]``."""
    return torch.trapezoid(curve, dim=1) / (curve.shape[1] - 1)


@torch.no_grad()
def curves(
    wf: ModulatedModel,
    x: Tensor,
    classes: Tensor,
    maps: Tensor,
    black: Tensor | float,
    config: FaithfulnessConfig | None = None,
) -> Curves:
    """The class's probability in the network with nothing selected, as pixels come and go.

    Args:
        x: images ``[B, C, H, W]``.
        classes: int64 ``[B]``.
        maps: ``[B, H, W]``; pixels of equal rank come in an order drawn by the seed.
        black: what a black pixel is in `x`, ``[C, 1, 1]`` or one number (`Split.black`).

    Raises:
        SelectionError: maps that are not of the images' size, or not finite.
    """
    config = config or FaithfulnessConfig()
    order = ranks(maps, x, config.seed)
    found = Curves(x.new_empty(len(x), config.steps + 1), x.new_empty(len(x), config.steps + 1))
    for rows in torch.arange(len(x), device=x.device).split(config.batch_size):
        images, own, rank = x[rows], classes[rows].unsqueeze(1), order[rows].unsqueeze(1)
        empty = blurred(images, config.blur, config.sigma), torch.as_tensor(black, dtype=x.dtype, device=x.device)
        for step in range(config.steps + 1):
            first = rank < round(step * x[0, 0].numel() / config.steps)
            for curve, mixed in (
                (found.insertion, torch.where(first, images, empty[0])),
                (found.deletion, torch.where(first, empty[1], images)),
            ):
                curve[rows, step] = wf.logits(wf(mixed, forget=-1)).softmax(1).gather(1, own).squeeze(1)
    return found


def ranks(maps: Tensor, x: Tensor, seed: int = 0) -> Tensor:
    """Each pixel's place in the order of its map, 0 the highest: ``[B, H, W]``, int64.

    Args:
        maps: ``[B, H, W]``.
        x: the images ``[B, C, H, W]``.
        seed: of the order of equal pixels.

    Raises:
        SelectionError: maps that are not of the images' size, or not finite.
    """
    if maps.shape != (len(x), *x.shape[-2:]):
        raise SelectionError(
            f"maps are {tuple(maps.shape)}, but the images are {tuple(x.shape)}: each needs one [H, W] of its own"
        )
    if not bool(maps.isfinite().all()):
        raise SelectionError("maps hold values that are not finite, so their pixels have no order")
    flat = maps.flatten(1).to(x.device)
    # A stable sort would leave equal pixels from the top left to the bottom right.
    drawn = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed)).to(x.device)
    order = drawn[flat[:, drawn].argsort(dim=1, descending=True, stable=True)]
    places = torch.arange(flat.shape[1], device=x.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view(maps.shape)
