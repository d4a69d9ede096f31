"""Autocast for modulated layers: the casts of the plain layers, with the copy of a frozen weight kept between calls."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from memmod.ops.modes import transformed


class _Copy(NamedTuple):
    data_ptr: int
    version: int
    tensor: Tensor


_copies = WeakIdKeyDictionary()


def cast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """x, weight and bias in the dtype of the enabled autocast region; unchanged outside of one."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return (
        x.to(dtype) if _eligible(x, dtype) else x,
        _cast_parameter(weight, dtype),
        None if bias is None else _cast_parameter(bias, dtype),
    )


def _eligible(t: Tensor, dtype: torch.dtype) -> bool:
    return t.dtype is not dtype and t.dtype is not torch.float64 and t.is_floating_point()


def _cast_parameter(t: Tensor, dtype: torch.dtype) -> Tensor:
    if not _eligible(t, dtype):
        return t
    plain = type(t) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling() and not t.is_inference()
    if t.requires_grad or not plain or not torch.is_autocast_cache_enabled() or transformed():
        return t.to(dtype)
    copy = _copies.get(t)
    fresh = copy is not None and copy.tensor.dtype is dtype and copy.tensor.device == t.device
    if not (fresh and copy.data_ptr == t.data_ptr() and copy.version == t._version):
        # A copy made in inference mode could not be saved for a later backward.
        with torch.inference_mode(False), torch.no_grad():
            copy = _Copy(t.data_ptr(), t._version, t.to(dtype))
        _copies[t] = copy
    return copy.tensor
