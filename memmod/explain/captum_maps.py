"""Maps by captum's methods, of the class's logit in the network with nothing selected.

Grad-CAM (arXiv 1610.02391) keeps its negative values here, so that a map orders all pixels. Integrated gradients (arXiv
1703.01365) start from, and occlusion (arXiv 1311.2901) covers with, the darkest value of each image's channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor, nn

from memmod.errors import ModelError, RunError
from memmod.explain.blocks import PlacedOutput, block_outputs, layer_outputs
from memmod.explain.gate_path import in_this_thread
from memmod.explain.placement import onto_image
from memmod.model import ModulatedModel

PATH_STEPS = 32
# Of an image's side: that of the square that occlusion covers, moved by half of it.
COVERED = 1 / 7
BATCH = 64


def integrated_gradients(wf: ModulatedModel, x: Tensor, classes: Tensor) -> Tensor:
    """Integrated gradients in 32 steps from the darkest value, summed over channels: ``[B, H, W]``."""
    method = _captum().IntegratedGradients(_logits(wf))

    def of(images: Tensor, target: Tensor) -> Tensor:
        size = max(BATCH, len(images))
        return method.attribute(images, _darkest(images), target, n_steps=PATH_STEPS, internal_batch_size=size).sum(1)

    return _in_batches(of, x, classes)


@torch.no_grad()
def occlusion(wf: ModulatedModel, x: Tensor, classes: Tensor) -> Tensor:
    """What the logit loses where a square is covered, a seventh of the side wide, moved by half: ``[B, H, W]``."""
    method = _captum().Occlusion(_logits(wf))
    side = max(round(min(x.shape[-2:]) * COVERED), 1)
    window, stride = (x.shape[1], side, side), (x.shape[1], *[max(side // 2, 1)] * 2)
    # Every channel of a pixel has the pixel's value.
    return _in_batches(
        lambda images, target: method.attribute(images, window, stride, _darkest(images), target).mean(1), x, classes
    )


def grad_cam(wf: ModulatedModel, x: Tensor, classes: Tensor) -> Tensor:
    """Grad-CAM of the last block whose positions reach the logit, of ``[B, C, H, W]``: ``[B, H, W]``.

    A block is a module around gated layers that keeps their grid or tokens; a network without any has its layers. What
    lies behind the last mixing of tokens does not reach a logit that is read off a class token.

    Raises:
        ModelError: no output has places in the image, or none of them reaches the logit.
    """
    blocks, layers = (outputs(wf, x.shape[1:]).values() for outputs in (block_outputs, layer_outputs))
    for output in [*reversed(blocks), *reversed(layers)]:
        found = _in_batches(lambda images, target, output=output: _grad_cam(wf, output, images, target), x, classes)
        if bool(found.any()):
            return found
    raise _no_places()


def layer_grad_cam(wf: ModulatedModel, x: Tensor, classes: Tensor) -> Tensor:
    """The sum of Grad-CAM of all gated layers, each spread over the pixels of ``[B, C, H, W]``: ``[B, H, W]``.

    Raises:
        ModelError: no layer has places in the image.
    """
    outputs = layer_outputs(wf, x.shape[1:]).values()
    if not outputs:
        raise _no_places()
    return _in_batches(
        lambda images, target: sum(_grad_cam(wf, output, images, target) for output in outputs), x, classes
    )


def _grad_cam(wf: ModulatedModel, output: PlacedOutput, x: Tensor, classes: Tensor) -> Tensor:
    with _tapped(output, len(x)) as tap:
        positions = _captum().LayerGradCam(_logits(wf), tap).attribute(x, classes).squeeze(1).detach()
    cells = positions.new_zeros(len(x), math.prod(output.place.grid))
    cells.index_add_(1, output.place.cells[_placed(output)].to(positions.device), positions)
    return onto_image(cells, output.place.grid, tuple(x.shape[-2:]))


@contextmanager
def _tapped(output: PlacedOutput, samples: int) -> Iterator[nn.Module]:
    """A module that what has places passes through as ``[B, C, P]``, which is what captum's Grad-CAM takes."""
    tap = nn.Identity()

    def through(_module: nn.Module, _args: tuple, value: Tensor) -> Tensor:
        last, placed = value.movedim(output.dim, -1), _placed(output).to(value.device)
        flat = last.reshape(samples, -1, last.shape[-1]).transpose(1, 2)
        seen = flat.index_copy(2, placed, tap(flat[:, :, placed]))
        return seen.transpose(1, 2).reshape(last.shape).movedim(-1, output.dim)

    handle = output.module.register_forward_hook(in_this_thread(through))
    try:
        yield tap
    finally:
        handle.remove()


def _placed(output: PlacedOutput) -> Tensor:
    """The positions that lie in the image: a class token's gradient has no part in the mean over places."""
    return (output.place.cells >= 0).nonzero().flatten()


def _in_batches(of: Callable[[Tensor, Tensor], Tensor], x: Tensor, classes: Tensor) -> Tensor:
    return torch.cat(
        [of(images, own).detach() for images, own in zip(x.split(BATCH), classes.split(BATCH), strict=True)]
    )


def _logits(wf: ModulatedModel) -> Callable[[Tensor], Tensor]:
    return lambda x: wf.logits(wf(x, forget=-1))


def _darkest(x: Tensor) -> Tensor:
    return x.amin((2, 3), keepdim=True).expand_as(x)


def check_captum() -> None:
    """Raise RunError where captum cannot be imported."""
    _captum()


def _captum() -> ModuleType:
    try:
        import captum.attr
    except ImportError as error:
        raise RunError(f"this map is made by captum, which cannot be imported ({error}): pip install captum") from error
    return captum.attr


def _no_places() -> ModelError:
    return ModelError(
        "Grad-CAM needs layers with places in the image, of which a class's logit depends; there are none"
    )
