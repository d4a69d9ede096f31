"""The memory format that a convolution's results have: the same rule for kernels, the reference and fakes."""

from __future__ import annotations

import torch
from torch import Tensor


def conv_memory_format(*tensors: Tensor | None) -> torch.memory_format:
    """channels_last if any of the tensors suggests it, as the library's convolutions choose."""
    if any(t is not None and _suggests_channels_last(t) for t in tensors):
        return torch.channels_last
    return torch.contiguous_format


def _suggests_channels_last(t: Tensor) -> bool:
    stride, smallest = t.stride(), 0
    if stride[1] == 0:
        return False
    for d in (1, 3, 2, 0):
        if t.shape[d] == 0 or stride[d] < smallest or (d == 0 and smallest == stride[1]):
            return False
        smallest = stride[d] * t.shape[d] if t.shape[d] > 1 else stride[d]
    return True
