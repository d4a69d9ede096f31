"""Which calls the CUDA C++ kernels take by themselves on a GPU; the others go to Triton's, if those are there.

By count (memmod/ops/backends/gpu_policy.py says of what), not measured; on a GPU `pytest benchmarks --benchmark-only`
compares both.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from memmod.ops.backends.gpu_policy import conv_path
from memmod.ops.calls import ConvCall, ConvGradCall, LinearCall
from memmod.ops.layout import conv_output_size

# Rows that csrc/cuda/include/kernels.h serves in one reading of the weight.
SMALL_ROWS = 16
# By op, when the kernels are taken, with the reason.
TABLE: dict[str, tuple[str, str]] = {
    "modulate_output": ("always", "as many bytes as Triton's tail, and launched from C++ instead of Python"),
    "modulate_output_backward": ("always", "as many bytes as Triton's tail, and launched from C++ instead of Python"),
    "modulated_linear": ("up to 16 rows", "the weight is read once and decides the time; no table of gates is made"),
    "modulated_linear_backward": ("never", "its products are as large as the library's: Triton fuses the gates"),
    "modulated_conv2d": (
        "channels_last without groups, where Triton's would be fused, on sm_8x and sm_12x",
        "mma.sync is those GPUs' fastest instruction; sm_90 and sm_100 have others, which Triton uses",
    ),
    "modulated_conv2d_backward": (
        "as forward, with stride 1 and frozen weights",
        "a stride leaves most taps of a pixel without a term, and the library computes dW and dx together",
    ),
}


def passes_over(op: str) -> Any:
    """A function of the op's call: why the automatic choice leaves the call to another backend, or None."""
    condition, reason = TABLE[op]
    message = f"taken {condition}: {reason}"
    takes = _TAKES.get(op)
    if takes is None:
        return lambda call: None if condition == "always" else message
    return lambda call: None if takes(call) else message


def _linear(call: LinearCall) -> bool:
    return call.x.numel() <= SMALL_ROWS * call.weight.shape[1]


def _conv2d(call: ConvCall) -> bool:
    x, weight = call.x, call.weight
    height, width = conv_output_size(x.shape, weight.shape, call.stride, call.padding, call.dilation)
    return _fused(x, weight, x.shape[0] * height * width, call.index, call.groups)


def _conv2d_backward(call: ConvGradCall) -> bool:
    dy, weight, need_dweight = call.dy, call.weight, call.needs[1]
    if weight is None or need_dweight or max(call.stride) > 1:
        return False
    return _fused(dy, weight, dy.shape[0] * dy.shape[2] * dy.shape[3], call.index, call.groups)


def _fused(x: Tensor, weight: Tensor, pixels: int, index: Tensor, groups: int) -> bool:
    if groups > 1 or not x.is_contiguous(memory_format=torch.channels_last) or not mma_sync_is_best(x.device):
        return False
    units, inputs, kernel_h, kernel_w = weight.shape
    return conv_path(inputs, kernel_h * kernel_w, units, pixels, index.shape[0] == 1) == "fused"


_TAKES = {"modulated_linear": _linear, "modulated_conv2d": _conv2d, "modulated_conv2d_backward": _conv2d_backward}


@functools.cache
def mma_sync_is_best(device: torch.device) -> bool:
    """Whether a GPU has no faster matrix instruction than mma.sync: compute capability 8.x and 12.x."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in (8, 12)
