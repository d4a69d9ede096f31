"""The relative precision in which a rival multiplies."""

from __future__ import annotations

import torch

# TF32 keeps 10 bits of a factor, and the units cut the others off.
TF32_EPS = 2.0**-10


def eps(dtype: torch.dtype, device: torch.device, *settings: object) -> float:
    """Of products in `dtype`; in fp32 on a GPU TF32's where one of the library's `settings` allows that."""
    if dtype is torch.float32 and device.type == "cuda" and any(s.fp32_precision == "tf32" for s in settings):
        return TF32_EPS
    return torch.finfo(dtype).eps
