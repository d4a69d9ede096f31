"""Tensors of which every process holds a part (`torch.distributed.tensor.DTensor`, as FSDP2 makes of parameters)."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether processes hold parts of `tensor`."""
    return any_sharded((tensor,))


def any_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether processes hold parts of one of `tensors`, which are not looked at where that cannot be."""
    # Not imported where nobody has: it takes half a second.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(isinstance(tensor, module.DTensor) for tensor in tensors)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor, on every process; all of them have to call it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def parted_like(value: Tensor, like: Tensor) -> Tensor:
    """`value`, which every process has whole, in the parts, on the device and in the dtype of `like`."""
    value = value.to(like.device, like.dtype)
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor; all of one that is not split."""
    return tensor.to_local() if is_sharded(tensor) else tensor
