"""Gates of a selection, and their products with tensors whose rows belong to samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Elements per step of a loop whose temporaries should stay in the cache.
BLOCK = 1 << 17
# Below the size at which the library splits an element-wise operation by threads.
_SIGMOID_BLOCK = 1 << 14
_SIGMOID_ALIGNMENT = 64


def gates(memory: Tensor | None, index: Tensor, gate: str) -> Tensor | None:
    """Each sample's multipliers: memory ``[C, K]``, index ``[B]`` or ``[B, S]`` → ``[B, K]``; None without memory.

    fp32, or fp64 for an fp64 memory. -1 selects nothing (multiplier 1); the multipliers of a set are multiplied, a class
    named twice in a row counting once. On CUDA a class out of range gives NaN.
    """
    if memory is None:
        return None
    if index.dim() == 1:
        return gates_of(memory, index, gate)
    product = None
    for column in distinct(index).unbind(1):
        factor = gates_of(memory, column, gate)
        product = factor if product is None else product * factor
    return memory.new_ones(index.shape[0], memory.shape[1]) if product is None else product


def gates_of(memory: Tensor, column: Tensor, gate: str) -> Tensor:
    """The multipliers of one class per sample: memory ``[C, K]``, column ``[B]`` → ``[B, K]``."""
    nothing = (column == -1).unsqueeze(1)
    classes = column.clamp(0, memory.shape[0] - 1)
    if memory.requires_grad or gate != "sigmoid" or memory.device.type != "cpu":
        rows = memory.index_select(0, classes)
        if gate == "sigmoid":
            rows = rows.sigmoid()
        elif gate == "hard":
            rows = (rows > 0).to(rows.dtype)
        rows = rows.masked_fill(nothing, 1.0)
    else:
        flat, rows = _aligned(memory, (column.shape[0], memory.shape[1]))
        torch.index_select(memory, 0, classes, out=rows)
        _sigmoid_(flat)
        rows.masked_fill_(nothing, 1.0)
    if column.device.type != "cpu":
        rows = rows.masked_fill(((column < -1) | (column >= memory.shape[0])).unsqueeze(1), math.nan)
    return rows


def distinct(index: Tensor) -> Tensor:
    """index ``[B, S]`` with every repetition of a class within a row replaced by -1."""
    if index.shape[1] < 2:
        return index
    repeated = (index.unsqueeze(2) == index.unsqueeze(1)).tril(-1).any(2)
    return index.masked_fill(repeated, -1)


def sigmoid_of_negative(memory: Tensor) -> Tensor:
    """σ(−α): the derivative of log σ(α), without the digits that 1 − σ(α) loses."""
    if memory.device.type != "cpu":
        return memory.neg().sigmoid_()
    flat, out = _aligned(memory, memory.shape)
    torch.neg(memory, out=out)
    _sigmoid_(flat)
    return out


def _aligned(like: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """An uninitialised buffer of whole vector registers, and its first elements as `shape`."""
    count = math.prod(shape)
    flat = torch.empty(-(-count // _SIGMOID_ALIGNMENT) * _SIGMOID_ALIGNMENT, dtype=like.dtype)
    return flat, flat[:count].view(shape)


def _sigmoid_(flat: Tensor) -> None:
    """σ in place, an element's bits depending on its value only, not on its place or the number of threads.

    The library rounds whole vector registers and the last few elements of a thread's range differently: so `flat` has
    whole registers, and is taken in blocks that no thread splits.
    """
    for block in flat.split(_SIGMOID_BLOCK):
        block.sigmoid_()


def gated(x: Tensor, s: Tensor, dim: int) -> Tensor:
    """x ``[k·B, …]`` times s ``[B, K]`` along `dim`, in x's layout and dtype; row r of x belongs to sample r // k."""
    if x.requires_grad or s.requires_grad:
        return (by_sample(x, s.shape[0]) * _along(s, x.dim(), dim)).to(x.dtype).view(x.shape)
    return _multiply(x, s, dim, torch.empty_like(x))


def gate_in_place(z: Tensor, s: Tensor, dim: int) -> Tensor:
    """`gated`, written over z (which nothing else may hold)."""
    return gated(z, s, dim) if z.requires_grad or s.requires_grad else _multiply(z, s, dim, z)


def by_sample(x: Tensor, samples: int) -> Tensor:
    """x ``[k·B, …]`` seen as ``[B, k, …]``."""
    return x.unflatten(0, (samples, x.shape[0] // samples if samples else 1))


def _along(s: Tensor, dims: int, dim: int) -> Tensor:
    shape = [1] * (dims + 1)
    shape[0] = s.shape[0]
    shape[dim % dims + 1] = s.shape[1]
    return s.view(shape)


def _multiply(x: Tensor, s: Tensor, dim: int, out: Tensor) -> Tensor:
    samples = s.shape[0]
    factors = _along(s, x.dim(), dim)
    rows, result = by_sample(x, samples), by_sample(out, samples)
    if x.dtype == s.dtype or x.device.type != "cpu" or x.numel() <= BLOCK:
        torch.mul(rows, factors, out=result)
        return out
    # The library widens whole operands of mixed dtypes: a block at a time keeps the copies small.
    row = x.numel() // x.shape[0]
    for b in range(samples):
        for part, target in zip(
            rows[b].split(max(1, BLOCK // row)), result[b].split(max(1, BLOCK // row)), strict=True
        ):
            torch.mul(part, factors[b], out=target)
    return out
