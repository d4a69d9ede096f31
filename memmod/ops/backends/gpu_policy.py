"""Which path a layer takes on a GPU: fused, unfused (the library's product and the tail), or gates folded
into the weight."""

from __future__ import annotations

import functools
from typing import Literal

import torch

from memmod.ops.calls import ConvCall

Path = Literal["fused", "unfused", "fold"]

# By generation of GPUs (`generation`), each threshold with its reason. `python -m benchmarks.retune` measures them.
TABLES: dict[int, dict[str, int]] = {
    # By count, not measured: a gate as a pass of its own reads and writes the output once, which costs 533/I of the
    # product in bf16 (800 TF/s and 3 TB/s). A fused kernel pays while it reaches I/(I + 533) of the library's speed:
    # 49 % at I = 512, 66 % at 1024, 79 % at 2048.
    8: {
        # Triton's products reach some 80 % of cuBLAS's on large square shapes: beyond 2048 inputs the tail is cheaper.
        "linear: fused up to inputs": 2048,
        # Below, the tail is a few microseconds, and what launches it from C++ costs less of the host than Triton does.
        "linear: fused from outputs": 1 << 22,
        # The same count with I x taps in place of I, and 50 to 60 % of cuDNN's speed expected of an implicit GEMM.
        "conv: fused up to inputs x taps": 576,
        # Below, tiles of 16 rows and columns are mostly padding, and cuDNN has kernels for depthwise and tiny layers.
        "conv: fused from units": 16,
        # An implicit GEMM's rows are the output's pixels: fewer leave multiprocessors idle, where cuDNN splits the sum.
        "conv: fused from pixels": 128 * 128,
    },
    # Measured on NVIDIA H200, torch 2.11.0+cu130, triton 3.6.0: the library's time over the fused path's, forwards in
    # bf16. Triton's products, which load by pointers, reach 350 to 400 TF/s there and cuBLAS 640 to 740.
    9: {
        # 0.72 at 192, 0.78 at 384, 0.77 at 768, 0.76 at 1024, 0.73 at 1536, 0.73 at 2048, 0.71 at 3072, 0.69 at 4096,
        # 0.68 at 6144, 0.65 at 8192.
        "linear: fused up to inputs": 0,
        # 1.95 at 150528, 0.62 at 301056, 0.56 at 602112, 0.60 at 1204224, 0.64 at 2408448, 0.61 at 4816896, 0.59 at
        # 9633792.
        "linear: fused from outputs": 9633793,
        # 0.67 at 72, 0.74 at 144, 0.69 at 288, 0.71 at 576, 0.72 at 1152, 0.52 at 2304.
        "conv: fused up to inputs x taps": 0,
        # 0.84 at 4, 0.71 at 8, 0.66 at 16, 0.69 at 32, 0.68 at 64.
        "conv: fused from units": 65,
        # 0.71 at 784, 0.68 at 3136, 0.64 at 6272, 0.75 at 12544, 0.71 at 25088, 0.70 at 50176, 0.72 at 100352.
        "conv: fused from pixels": 100353,
    },
}
_forced: Path | None = None


@functools.cache
def generation(device: torch.device) -> int:
    """The key of `TABLES` for a device: 9 for sm_90 and sm_100, whose fastest products are asynchronous; else 8."""
    if device.type != "cuda":
        return 8
    return 9 if torch.cuda.get_device_capability(device)[0] in (9, 10) else 8


def whole_batch(samples: int, rows: int, inputs: int) -> bool:
    """Whether one selection (an index of shape ``[1]``) serves so many rows of the output that the weight, of `inputs`
    numbers for each unit, is the smaller one to gate: a pass over it is less than one over them."""
    return samples == 1 and (rows >= inputs or _forced == "fold")


def whole_batch_conv(call: ConvCall, pixels: int, inputs: int) -> bool:
    """As `whole_batch` for a convolution's forward. The library adds a bias by a pass behind the product, which reads
    and writes what the tail does: the tail takes both, unless the weight's gates save a pass over x."""
    pass_anyway = call.bias is not None and call.input_memory is None and _forced != "fold"
    return not pass_anyway and whole_batch(call.index.shape[0], pixels, inputs)


def linear_path(device: torch.device, inputs: int, outputs: int, whole_batch: bool) -> Path:
    """For a linear layer (and a 1x1 convolution in channels_last) of `inputs` features and, in all, `outputs` numbers.

    whole_batch: as `whole_batch` says, and nothing else needs the product without its gates.
    """
    if _forced is not None:
        return _forced if whole_batch or _forced != "fold" else "fused"
    if whole_batch:
        return "fold"
    table = TABLES[generation(device)]
    few = inputs <= table["linear: fused up to inputs"] and outputs >= table["linear: fused from outputs"]
    return "fused" if few else "unfused"


def conv_path(device: torch.device, inputs: int, taps: int, units: int, pixels: int, whole_batch: bool) -> Path:
    """For a convolution in channels_last without groups: `pixels` outputs of `units`, `inputs` x `taps` each."""
    if _forced is not None:
        return _forced if whole_batch or _forced != "fold" else "fused"
    if whole_batch:
        return "fold"
    table = TABLES[generation(device)]
    few = inputs * taps <= table["conv: fused up to inputs x taps"] and units >= table["conv: fused from units"]
    return "fused" if few and pixels >= table["conv: fused from pixels"] else "unfused"


def forced() -> Path | None:
    """What `force` made of the choice."""
    return _forced


def force(path: Path | None) -> None:
    """Make every layer that can take `path`, for tests and measurements; None returns to the table."""
    global _forced
    _forced = path
