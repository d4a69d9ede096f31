"""The order in which results are stored, the same for kernels, the reference and fakes; tensors seen by channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def conv_memory_format(*tensors: Tensor | None) -> torch.memory_format:
    """channels_last if any of the tensors suggests it, as the library's convolutions choose."""
    if any(t is not None and _suggests_channels_last(t) for t in tensors):
        return torch.channels_last
    return torch.contiguous_format


def conv_output_size(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """[H', W'] of a convolution of ``[images, I, H, W]`` by ``[O, I / groups, kH, kW]``."""
    return [
        (x_shape[2 + d] + 2 * padding[d] - dilation[d] * (weight_shape[2 + d] - 1) - 1) // stride[d] + 1 for d in (0, 1)
    ]


def _suggests_channels_last(t: Tensor) -> bool:
    stride, smallest = t.stride(), 0
    if stride[1] == 0:
        return False
    for d in (1, 3, 2, 0):
        if t.shape[d] == 0 or stride[d] < smallest or (d == 0 and smallest == stride[1]):
            return False
        smallest = stride[d] * t.shape[d] if t.shape[d] > 1 else stride[d]
    return True


def empty_channels_last(like: Tensor, width: int, size: Sequence[int]) -> Tensor:
    """Uninitialised ``[images, width, *size]`` with the images, dtype and device of `like`."""
    shape = (like.shape[0], width, *size)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


class Channels(NamedTuple):
    """A tensor seen as ``[rows, K, inner]``, in the order of its storage."""

    rows: int
    width: int
    inner: int
    channels_last: bool


def channels(x: Tensor, dim: int) -> Channels:
    """How a contiguous or channels_last x has its channels at `dim`."""
    dim %= x.dim()
    if dim < 2 and x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        if dim == 0:
            return Channels(1, x.shape[0], math.prod(x.shape[1:]), True)
        return Channels(x.shape[0] * x.shape[2] * x.shape[3], x.shape[1], 1, True)
    return Channels(math.prod(x.shape[:dim]), x.shape[dim], math.prod(x.shape[dim + 1 :]), False)


def laid_out(x: Tensor, like: Channels) -> Tensor:
    """x in the layout that `like` names; itself if it has it."""
    return x.contiguous(memory_format=torch.channels_last if like.channels_last else torch.contiguous_format)


def like(x: Tensor, y: Tensor) -> Tensor:
    """y in the strides that a new tensor like x has; a copy only where x is neither contiguous nor channels_last."""
    strides = torch.empty_like(x, device="meta").stride()
    return y if y.stride() == strides else torch.empty_like(x).copy_(y)
