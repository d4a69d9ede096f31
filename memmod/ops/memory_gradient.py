"""Memory gradients: each sample's sums of products, then the sums of the samples that selected a class.

Both in an order that only shapes fix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from memmod.ops.gating import BLOCK, distinct, gates_of, sigmoid


def memory_gradient(memory: Tensor, index: Tensor, gate: str, sums: Tensor) -> Tensor:
    """dα ``[C, K]`` from each sample's sums ``[B, K]``; exactly 0 for a class that no sample selects.

    sigmoid: sums of dy ⊙ g, every class of a set getting the same: σ(−α) ⊙ Σ. identity: sums of dy ⊙ z, times the gates
    of the other classes of the set.
    """
    columns = [index] if index.dim() == 1 else distinct(index).unbind(1)
    if gate == "sigmoid":
        return _class_sums(memory, columns, [sums] * len(columns)) * sigmoid(-memory)
    factors = [gates_of(memory, column, gate) for column in columns]
    shares = []
    for s in range(len(columns)):
        share = sums
        for other in factors[:s] + factors[s + 1 :]:
            share = share * other
        shares.append(share)
    return _class_sums(memory, columns, shares).clone()


def _class_sums(memory: Tensor, columns: Sequence[Tensor], shares: Sequence[Tensor]) -> Tensor:
    classes, width = memory.shape
    # The last row collects what selects nothing.
    total = memory.new_zeros(classes + 1, width)
    for column, share in zip(columns, shares, strict=True):
        if column.device.type == "cpu":
            total.index_add_(0, column.remainder(classes + 1), share)
        else:
            # index_add_ is atomic on CUDA, an accumulating index_put_ sorts first.
            rows = column.masked_fill((column < 0) | (column >= classes), classes)
            total.index_put_((rows,), share, accumulate=True)
    return total[:classes]


def sums_of_products(a: Tensor, b: Tensor, dim: int, samples: int, dtype: torch.dtype) -> Tensor:
    """Each sample's Σ a ⊙ b over every dim but `dim`: a, b ``[k·B, …]`` → ``[B, K]`` in `dtype`.

    Products and sums in fp32, or fp64 if any operand or `dtype` is fp64.
    """
    dim %= a.dim()
    wide = torch.float64 if torch.float64 in (a.dtype, b.dtype, dtype) else torch.float32
    if a.numel() == 0:
        return torch.zeros(samples, a.shape[dim], dtype=dtype, device=a.device)
    last = b.dim() == 4 and dim == 1 and not b.is_contiguous() and b.is_contiguous(memory_format=torch.channels_last)
    a, b = _rows_and_channels(a, dim, samples, last), _rows_and_channels(b, dim, samples, last)
    block = BLOCK if a.device.type == "cpu" else a.numel()
    row = a.shape[2] * a.shape[3]
    step = min(a.shape[1], max(1, block // row))
    group = max(1, block // (step * row))
    sums = torch.empty(samples, a.shape[2], dtype=wide, device=a.device)
    for first in range(0, samples, group):
        at = slice(first, first + group)
        parts = []
        for start in range(0, a.shape[1], step):
            product = a[at, start : start + step].to(wide) * b[at, start : start + step]
            parts.append(_tree_sum(_tree_sum(product, 3), 1))
        sums[at] = parts[0] if len(parts) == 1 else _tree_sum(torch.stack(parts), 0)
    return sums.to(dtype)


def _rows_and_channels(t: Tensor, dim: int, samples: int, channels_last: bool) -> Tensor:
    """t as contiguous ``[B, rows, K, inner]``; a view where its layout allows it."""
    if channels_last:
        t, dim = t.permute(0, 2, 3, 1), 3
    shape = t.shape
    rows, inner = math.prod(shape[:dim]) // samples, math.prod(shape[dim + 1 :])
    return t.contiguous().view(samples, rows, shape[dim], inner)


def _tree_sum(t: Tensor, dim: int) -> Tensor:
    """Sum along `dim`, the upper half added to the lower one until one is left; overwrites t.

    Additions of whole tensors: the library's own sum would depend on how many threads share it.
    """
    count = t.shape[dim]
    while count > 1:
        half = (count + 1) // 2
        t.narrow(dim, 0, count - half).add_(t.narrow(dim, half, count - half))
        count = half
    return t.select(dim, 0)
