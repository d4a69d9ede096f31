"""The ops' C++ functions called without torch.library between: a tenth of a call's cost where layers are small.

Each returns None where a call is out of the ordinary (traced, transformed, another device or dtype, a wrong shape or
class, no compiled extension, another backend forced); the op then serves it, or says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memmod.ops import transforms
from memmod.ops.backends.cpu import extension

_KEEPS = {"output": False, "gated": True}
_ACTIVATIONS = {None: False, "relu": True}


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    memory: Tensor | None,
    input_memory: Tensor | None,
    index: Tensor,
    gate: str,
    gate_bias: bool,
    keep: str,
    activation: str | None,
) -> Tensor | None:
    """modulated_linear, or None."""
    if keep not in _KEEPS or activation not in _ACTIVATIONS:
        return None
    if not _plain(x, weight, bias, memory, input_memory, index):
        return None
    module = extension.module()
    if module is None:
        return None
    relu = _ACTIVATIONS[activation]
    return module.linear(x, weight, bias, memory, input_memory, index, gate, gate_bias, _KEEPS[keep], relu)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    memory: Tensor | None,
    input_memory: Tensor | None,
    index: Tensor,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
    gate: str,
    gate_bias: bool,
    keep: str,
    activation: str | None,
) -> Tensor | None:
    """modulated_conv2d with numbers as padding, or None."""
    if keep not in _KEEPS or activation not in _ACTIVATIONS:
        return None
    if not _plain(x, weight, bias, memory, input_memory, index):
        return None
    module = extension.module()
    if module is None or isinstance(padding, str):
        return None
    return module.conv2d(
        x,
        weight,
        bias,
        memory,
        input_memory,
        index,
        gate,
        gate_bias,
        _KEEPS[keep],
        _ACTIVATIONS[activation],
        _pair(stride),
        _pair(padding),
        _pair(dilation),
        groups,
    )


def output(x: Tensor, memory: Tensor, index: Tensor, dim: int, gate: str, keep: str) -> Tensor | None:
    """modulate_output, or None."""
    if keep not in _KEEPS or not _plain(x, memory, index):
        return None
    module = extension.module()
    return None if module is None else module.output(x, memory, index, dim, gate, _KEEPS[keep])


_PLAIN = (Tensor, torch.nn.Parameter, type(None))


def _plain(*tensors: Tensor | None) -> bool:
    return not transforms.active() and all(type(t) in _PLAIN for t in tensors)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value) if len(value) == 2 else (value[0],) * 2
