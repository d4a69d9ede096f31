"""What kernels commonly do not serve; each check returns None or the reason, which names the kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from memmod.ops.calls import LayerCall, LayerGradCall, OutputCall, OutputGradCall

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


def other_bias(kernel: str, call: LayerCall) -> str | None:
    """Why not: a bias that is not one number for each unit, which a kernel would read past its end."""
    units = call.weight.shape[0]
    if call.bias is None or call.bias.shape == (units,):
        return None
    return f"{kernel} needs a bias of {units} numbers, not of shape {tuple(call.bias.shape)}"


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

    def layer(call: LayerCall) -> str | None:
        x, inputs = call.x, call.x.shape[1] if call.conv else call.weight.shape[-1]
        reason = unserved(x, call.memory, call.input_memory) or other_dtype(kernel, x, call.weight, call.bias)
        return reason or other_bias(kernel, call) or too_many(x, inputs)

    def layer_backward(call: LayerGradCall) -> str | None:
        dy, units = call.dy, call.dy.shape[1 if call.conv else -1]
        reason = unserved(dy, call.memory, call.input_memory)
        return reason or other_dtype(kernel, dy, call.x, call.weight, call.saved) or too_many(dy, units)

    def gated(x: Tensor, memory: Tensor, dim: int) -> str | None:
        if x.dim() < 2 or dim in (0, -x.dim()):
            return f"{kernel} gates a dim behind the rows"
        return unserved(x, memory) or too_many(x, x.shape[dim])

    def output(call: OutputCall) -> str | None:
        return gated(call.x, call.memory, call.dim)

    def output_backward(call: OutputGradCall) -> str | None:
        need_dmemory = call.needs[1]
        reason = gated(call.dy, call.memory, call.dim)
        return reason or (other_dtype(kernel, call.dy, call.saved) if need_dmemory else None)

    return {
        "modulated_linear": layer,
        "modulated_linear_backward": layer_backward,
        "modulated_conv2d": layer,
        "modulated_conv2d_backward": layer_backward,
        "modulate_output": output,
        "modulate_output_backward": output_backward,
    }
