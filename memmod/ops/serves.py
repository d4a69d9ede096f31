"""What kernels commonly do not serve; each check returns None or the reason, which names the kernel."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unserved(kernel: str, x: Tensor, *memories: Tensor | None) -> str | None:
    """Why not: a dtype of x or of a memory, or a call outside of the op that autograd would have to record."""
    memories = [memory for memory in memories if memory is not None]
    if x.dtype not in DTYPES or any(memory.dtype != torch.float32 for memory in memories):
        kinds = " and ".join(str(memory.dtype) for memory in memories)
        return f"{kernel} serves fp32, bf16 and fp16 with an fp32 memory, not {x.dtype} with {kinds}"
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *memories)):
        return f"{kernel} is not recorded by autograd: call the op in torch.ops.memmod"
    return None


def other_dtype(kernel: str, x: Tensor, *others: Tensor | None) -> str | None:
    """Why not: an operand of another dtype than x."""
    for other in others:
        if other is not None and other.dtype != x.dtype:
            return f"{kernel} needs one dtype, not {x.dtype} and {other.dtype}"
    return None


def layout(kernel: str, x: Tensor, dim: int) -> str | None:
    """Why not: gates along the rows, or an x that is neither contiguous nor channels_last along its channels."""
    if x.dim() < 2 or dim in (0, -x.dim()):
        return f"{kernel} gates a dim behind the rows"
    if x.is_contiguous():
        return None
    if x.dim() == 4 and dim in (1, -3) and x.is_contiguous(memory_format=torch.channels_last):
        return None
    return f"{kernel} needs contiguous or channels_last tensors, not strides {x.stride()}"
