"""A gradient of exactly zero for memories that a call does not use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from memmod.ops.modes import transformed


def wanted(memories: Iterable[Tensor | None]) -> list[Tensor]:
    """The memories that a call made now owes a gradient: none where gradients are off, or a transform or tracer looks.

    `torch.distributed` waits for a gradient of every parameter on every process, whatever each of them selects.
    """
    if not torch.is_grad_enabled() or transformed() or torch._C._get_tracing_state() is not None:
        return []
    if torch.compiler.is_exporting():
        return []
    return [memory for memory in memories if memory is not None and memory.requires_grad]


def with_zero_gradient(tensors: Sequence[Tensor], memories: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Copies of floating `tensors`, whose backward gives each of the `memories` zeros and reads none of them."""
    return _ZeroGradient.apply(len(tensors), *tensors, *memories)


class _ZeroGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.memories = [(memory.shape, memory.dtype, memory.device) for memory in tensors[count:]]
        # Copies, not views: callers may write into what a layer or a model returned.
        return tuple(tensor.clone() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1 + len(gradients) :]
        zeros = [
            torch.zeros(shape, dtype=dtype, device=device) if need else None
            for need, (shape, dtype, device) in zip(needed, ctx.memories, strict=True)
        ]
        return (None, *gradients, *zeros)
