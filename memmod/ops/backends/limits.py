"""What kernels commonly do not serve; each check returns None or the reason, which names the kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# GPU kernels count rows in 32 bits; addresses are not.
ROWS = 2**31 - 2**16
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


def gpu_supports(kernel: str, unserved: Callable[..., str | None]) -> dict[str, Callable[..., str | None]]:
    """By op, the checks of a GPU backend: `unserved(x, *memories)`, then dtypes, gated dims and the number of rows."""

    def too_many(x: Tensor, width: int) -> str | None:
        # Where channels come first, their lines are counted too.
        rows = max(x.numel() // max(1, width), x.shape[0] * x.shape[1] if x.dim() > 2 else 0)
        return None if rows <= ROWS else f"{kernel} counts rows in 32 bits, and there are {rows}: split the batch"

    def layer(
        x: Tensor, weight: Tensor, bias: Tensor | None, memory: Tensor | None, input_memory: Tensor | None, *rest: Any
    ) -> str | None:
        reason = unserved(x, memory, input_memory) or other_dtype(kernel, x, weight, bias)
        return reason or too_many(x, weight.shape[-1] if weight.dim() == 2 else x.shape[1])

    def layer_backward(
        dy: Tensor,
        x_shape: Sequence[int],
        x: Tensor | None,
        weight: Tensor | None,
        memory: Tensor | None,
        input_memory: Tensor | None,
        index: Tensor,
        saved: Tensor | None,
        *rest: Any,
    ) -> str | None:
        reason = unserved(dy, memory, input_memory) or other_dtype(kernel, dy, x, weight, saved)
        # A linear layer's gradient has its units last; a convolution's call has its options before `needs`.
        return reason or too_many(dy, dy.shape[1] if len(rest) > 3 else dy.shape[-1])

    def output(x: Tensor, memory: Tensor, index: Tensor, dim: int, *rest: Any) -> str | None:
        if x.dim() < 2 or dim in (0, -x.dim()):
            return f"{kernel} gates a dim behind the rows"
        return unserved(x, memory) or too_many(x, x.shape[dim])

    def output_backward(
        dy: Tensor, saved: Tensor | None, memory: Tensor, index: Tensor, dim: int, gate: str, needs: Sequence[bool]
    ) -> str | None:
        return output(dy, memory, index, dim) or (other_dtype(kernel, dy, saved) if needs[1] else None)

    return {
        "modulated_linear": layer,
        "modulated_linear_backward": layer_backward,
        "modulated_conv2d": layer,
        "modulated_conv2d_backward": layer_backward,
        "modulate_output": output,
        "modulate_output_backward": output_backward,
    }
