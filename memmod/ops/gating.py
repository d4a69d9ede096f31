"""Gates of a selection, and their products with tensors whose rows belong to samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Gates below this count as closed: the threshold that the recipe bakes with.
CLOSED = 0.3
# Elements of the temporaries of blocked loops.
BLOCK = 1 << 20
# Less than the size from which the library splits an element-wise operation by threads.
_SERIAL = 1 << 14


def gates(memory: Tensor | None, index: Tensor, gate: str) -> Tensor | None:
    """Each sample's multipliers: memory ``[C, K]``, index ``[B]`` or ``[B, S]`` → ``[B, K]``; None without memory.

    fp32, or fp64 for an fp64 memory. -1 selects nothing (multiplier 1); the multipliers of a set are multiplied, a
    class named twice in a row counting once. On CUDA a class out of range gives NaN.
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
    classes = memory.shape[0]
    if classes <= column.shape[0] or _recording(memory):
        # Fewer classes than samples: -1 is the row of ones behind the last class.
        table = torch.cat((_multiplier(memory, gate), memory.new_ones(1, memory.shape[1])))
        rows = table.index_select(0, column.remainder(classes + 1))
    else:
        rows = _multiplier(memory.index_select(0, column.clamp(0, classes - 1)), gate)
        rows.masked_fill_((column == -1).unsqueeze(1), 1.0)
    if column.device.type != "cpu":
        rows = rows.masked_fill(((column < -1) | (column >= classes)).unsqueeze(1), math.nan)
    return rows


def _multiplier(alpha: Tensor, gate: str) -> Tensor:
    if gate == "sigmoid":
        return sigmoid(alpha)
    return (alpha > 0).to(alpha.dtype) if gate == "hard" else alpha


def distinct(index: Tensor) -> Tensor:
    """index ``[B, S]`` with every repetition of a class within a row replaced by -1."""
    if index.shape[1] < 2:
        return index
    repeated = (index.unsqueeze(2) == index.unsqueeze(1)).tril(-1).any(2)
    return index.masked_fill(repeated, -1)


def sigmoid(alpha: Tensor) -> Tensor:
    """σ(α), an element's bits not depending on the number of threads.

    The library rounds whole vector registers and the last few elements of a thread's range differently, so a large
    tensor is taken in blocks that no thread splits.
    """
    if alpha.numel() <= _SERIAL or _recording(alpha) or alpha.device.type != "cpu":
        return alpha.sigmoid()
    out = alpha.clone(memory_format=torch.contiguous_format)
    for block in out.view(-1).split(_SERIAL):
        block.sigmoid_()
    return out


def gated(x: Tensor, s: Tensor, dim: int) -> Tensor:
    """x ``[k·B, …]`` times s ``[B, K]`` along `dim`, in x's layout and dtype; row r of x belongs to sample r // k."""
    if _recording(x, s):
        return (_by_sample(x, s.shape[0]) * _along(s, x.dim(), dim)).to(x.dtype).view(x.shape)
    return _multiply(x, s, dim, torch.empty_like(x))


def gate_in_place(z: Tensor, s: Tensor, dim: int) -> Tensor:
    """`gated`, written over z (which nothing else may hold)."""
    return gated(z, s, dim) if _recording(z, s) else _multiply(z, s, dim, z)


def _recording(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _by_sample(x: Tensor, samples: int) -> Tensor:
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
    rows, result = _by_sample(x, samples), _by_sample(out, samples)
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
