"""Which calls the CUDA C++ backend takes by itself on a GPU, and by which path; the others go to Triton's, if those are
there."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from memmod.ops.backends import gpu_policy
from memmod.ops.backends.gpu_policy import Path
from memmod.ops.calls import ConvCall, ConvGradCall, LayerCall, LinearCall
from memmod.ops.layout import conv_memory_format, conv_output_size

# The type of the device whose tensors the loaded kernels take: "cpu" where tests run them there.
device_type = "cuda"
# Rows that csrc/cuda/include/kernels.h serves in one reading of the weight.
SMALL_ROWS = 16
# csrc/cuda/include/kernels.h: of a sample, what the product with gates in its epilogue needs.
FUSED_ROWS = 43
# Rows in all from which it is taken, and the most that it counts.
FUSED_FROM, FUSED_MOST = 256, 2**31 - 1024
# By op, when the calls are taken, with the reason.
TABLE: dict[str, tuple[str, str]] = {
    "modulate_output": ("always", "as many bytes as Triton's tail, and launched from C++ instead of Python"),
    "modulate_output_backward": ("always", "as many bytes as Triton's tail, and launched from C++ instead of Python"),
    "modulated_linear": (
        "up to 16 rows, many in 16 bits on sm_90, and where Triton would not fuse the gates",
        "kernels of their own for few rows, and with sm_90's instructions; else the library's product and the tail",
    ),
    "modulated_linear_backward": ("always", "the tail that sums the memory's gradient writes the product's operand"),
    "modulated_conv2d": (
        "where Triton would not fuse the gates, in channels_last without groups on sm_8x and sm_12x, 1x1 on sm_90",
        "mma.sync is the fastest instruction of sm_8x and sm_12x; sm_90's are used for what is a plain product",
    ),
    "modulated_conv2d_backward": ("always", "the tail that sums the memory's gradient writes the product's operand"),
}


def passes_over(op: str) -> Any:
    """A function of the op's call: why the automatic choice leaves the call to another backend, or None."""
    condition, reason = TABLE[op]
    message = f"taken {condition}: {reason}"
    takes = _TAKES.get(op)
    return lambda call: None if takes is None or takes(call) else message


def few_rows(call: LinearCall) -> bool:
    """Whether the kernel for few rows serves the call."""
    rows = math.prod(call.x.shape[:-1])
    return gpu_policy.forced() != "unfused" and 0 < rows <= SMALL_ROWS and call.weight.shape[0] > 0


def many_rows(call: LinearCall, forced: Path | None) -> bool:
    """Whether the product with gates in its epilogue serves the call, where this path is forced or none."""
    return _fused(call, math.prod(call.x.shape[:-1]), forced)


def pointwise(call: ConvCall, forced: Path | None) -> bool:
    """As `many_rows` for a convolution, a product of each pixel."""
    geometry = (*call.weight.shape[2:], *call.stride, call.groups, *call.padding)
    plain = geometry == (1, 1, 1, 1, 1, 0, 0) and _channels_last(call)
    return plain and _fused(call, call.x.numel() // max(1, call.x.shape[1]), forced)


def _fused(call: LayerCall, rows: int, forced: Path | None) -> bool:
    units, inputs = call.weight.shape[:2]
    if call.memory is None or call.input_memory is not None or call.keep_gated or call.x.dtype.itemsize != 2:
        return False
    if min(units, inputs, rows) == 0 or units % 8 or inputs % 8 or rows // call.index.shape[0] < FUSED_ROWS:
        return False
    if max(units, inputs, rows) > FUSED_MOST or forced not in (None, "fused"):
        return False
    return (forced == "fused" or rows >= FUSED_FROM) and has_linear_fused(call.x.device)


@functools.cache
def has_linear_fused(device: torch.device) -> bool:
    """Whether a GPU has that product's instructions, and the extension its code."""
    return device.type == device_type and torch.ops.memmod_cuda.has_linear_fused.default(torch.empty(0, device=device))


def by_library(call: ConvCall) -> bool:
    """Whether a convolution that this backend takes is the library's."""
    return conv2d_path(call, _channels_last(call), False) != "fused"


def conv2d_path(call: ConvCall, channels_last: bool, whole_batch: bool) -> Path:
    """The kernel of csrc/cuda where it pays, or is forced; else the library's convolution."""
    pixels, forced = _pixels(call), gpu_policy.forced()
    if pointwise(call, forced):
        return "fused"
    served = call.groups == 1 and channels_last and min(call.weight.numel(), pixels) > 0
    own = _is_best(call.x, call.weight, pixels) if forced is None else forced == "fused"
    if served and own and not (whole_batch and forced is None):
        return "fused"
    return "fold" if whole_batch and call.groups == 1 else "unfused"


def conv2d_dx_is_own(call: ConvGradCall, channels_last: bool) -> bool:
    """Whether the kernel of csrc/cuda computes the gradient of a convolution's input."""
    if call.groups > 1 or not channels_last or call.dy.numel() == 0 or math.prod(call.x_shape) == 0:
        return False
    if gpu_policy.forced() is not None:
        return gpu_policy.forced() == "fused"
    # A stride leaves most taps of a pixel without a term.
    pixels = call.dy.shape[0] * call.dy.shape[2] * call.dy.shape[3]
    return max(call.stride) == 1 and _is_best(call.dy, call.weight, pixels)


def _linear(call: LinearCall) -> bool:
    units, inputs = call.weight.shape
    rows = call.x.numel() // max(1, inputs)
    if few_rows(call) or many_rows(call, gpu_policy.forced()):
        return True
    whole_batch = gpu_policy.whole_batch(call.index.shape[0], rows, inputs)
    return gpu_policy.linear_path(call.x.device, inputs, rows * units, whole_batch) != "fused"


def _conv2d(call: ConvCall) -> bool:
    if call.groups > 1 or not _channels_last(call) or pointwise(call, gpu_policy.forced()):
        return True
    units, inputs, *kernel = call.weight.shape
    pixels = _pixels(call)
    whole_batch = gpu_policy.whole_batch_conv(call, pixels, inputs * math.prod(kernel))
    if kernel == [1, 1] and max(call.stride) == 1 and max(call.padding) == 0:
        return gpu_policy.linear_path(call.x.device, inputs, pixels * units, whole_batch) != "fused"
    triton = gpu_policy.conv_path(call.x.device, inputs, math.prod(kernel), units, pixels, whole_batch)
    return triton != "fused" or mma_sync_is_best(call.x.device)


_TAKES = {"modulated_linear": _linear, "modulated_conv2d": _conv2d}


def _channels_last(call: ConvCall) -> bool:
    return conv_memory_format(call.x, call.weight) is torch.channels_last


def _pixels(call: ConvCall) -> int:
    size = conv_output_size(call.x.shape, call.weight.shape, call.stride, call.padding, call.dilation)
    return call.x.shape[0] * math.prod(size)


def _is_best(x: Tensor, weight: Tensor, pixels: int) -> bool:
    units, inputs, kernel_h, kernel_w = weight.shape
    path = gpu_policy.conv_path(x.device, inputs, kernel_h * kernel_w, units, pixels, whole_batch=False)
    return path == "fused" and mma_sync_is_best(x.device)


@functools.cache
def mma_sync_is_best(device: torch.device) -> bool:
    """Whether a GPU has no faster matrix instruction than mma.sync: compute capability 8.x and 12.x."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in (8, 12)
