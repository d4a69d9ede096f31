"""A map that is finer than the layers' grids: where the gates' path runs, and which pixels the logit is made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from memmod.explain.attribution import BATCH, Attribution
from memmod.explain.blur import blurred
from memmod.explain.quadrature import gauss_legendre
from memmod.explain.targets import logit
from memmod.model import ModulatedModel

# Of the image's side: the standard deviation of the smoothing of the gates' part. Chosen, as the equal weights of both
# parts, on training images (docs/faithfulness.md).
SMOOTHING = 0.05
STEPS = 16


def detailed_map(wf: ModulatedModel, x: Tensor, classes: Tensor, attribution: Attribution) -> Tensor:
    """The image of an attribution, smoothed, and the integrated gradients of the pixels in equal parts: ``[B, H, W]``.

    Both are divided by their standard deviation over the image before they are added, so that the sum is no share of a
    logit any more: `Attribution.image` is.

    Args:
        x: the images ``[B, C, H, W]`` that were attributed.
        classes: int64 ``[B]``.
        attribution: of these images (`memmod.explain.attribute`).
    """
    sigma = SMOOTHING * min(x.shape[-2:])
    path = blurred(attribution.image().unsqueeze(1), 2 * math.ceil(2 * sigma) + 1, sigma).squeeze(1)
    return _standardised(path) + _standardised(pixels(wf, x, classes).to(path))


def pixels(wf: ModulatedModel, x: Tensor, classes: Tensor, steps: int = STEPS) -> Tensor:
    """Integrated gradients (arXiv 1703.01365) of the logit with nothing selected, summed over channels: ``[B, H, W]``.

    The path starts at the darkest value of each channel of an image.

    Args:
        x: images ``[B, C, H, W]``.
        classes: int64 ``[B]``.
        steps: points of the Gauss-Legendre rule.
    """
    found = []
    for images, own in zip(x.split(BATCH), classes.split(BATCH), strict=True):
        way, total = images - images.amin((2, 3), keepdim=True), torch.zeros_like(images)
        for t, weight in gauss_legendre(steps):
            at = (images - (1 - t) * way).detach().requires_grad_()
            with torch.enable_grad():
                value = logit(wf.logits(wf(at, forget=-1)), own).sum()
            total += weight * torch.autograd.grad(value, at)[0]
        found.append((way * total).sum(1))
    return torch.cat(found)


def _standardised(maps: Tensor) -> Tensor:
    return maps / maps.flatten(1).std(1).clamp_min(torch.finfo(maps.dtype).tiny).view(-1, 1, 1)
