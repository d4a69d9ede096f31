"""Which path a layer takes on a GPU: fused, unfused (the library's product and the tail), or gates folded
into the weight.

By count, for H100 (800 TF/s in bf16, 3 TB/s): a gate as a pass of its own reads and writes the output once, which costs
533/I of the product in the forward and, over a step with frozen W, 2400/I. A fused kernel pays while it reaches
I/(I + 533) of the library's speed: 49 % at I = 512, 66 % at 1024, 79 % at 2048. Not measured on a GPU;
`python -m benchmarks.retune` does.
"""

from __future__ import annotations

from typing import Literal

Path = Literal["fused", "unfused", "fold"]

# Each threshold with its reason.
TABLE: dict[str, int] = {
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
}
_forced: Path | None = None


def linear_path(inputs: int, outputs: int, whole_batch: bool) -> Path:
    """For a linear layer (and a 1x1 convolution in channels_last) of `inputs` features and, in all, `outputs` numbers.

    whole_batch: one selection for all samples, known from the index's shape ``[1]``; then the weight is small beside
    the rows, and one pass over it is cheaper than any over them.
    """
    if _forced is not None:
        return _forced if whole_batch or _forced != "fold" else "fused"
    if whole_batch:
        return "fold"
    few = inputs <= TABLE["linear: fused up to inputs"] and outputs >= TABLE["linear: fused from outputs"]
    return "fused" if few else "unfused"


def conv_path(inputs: int, taps: int, units: int, pixels: int, whole_batch: bool) -> Path:
    """For a convolution in channels_last without groups: `pixels` outputs of `units`, `inputs` x `taps` each."""
    if _forced is not None:
        return _forced if whole_batch or _forced != "fold" else "fused"
    if whole_batch:
        return "fold"
    few = inputs * taps <= TABLE["conv: fused up to inputs x taps"] and units >= TABLE["conv: fused from units"]
    return "fused" if few and pixels >= TABLE["conv: fused from pixels"] else "unfused"


def forced() -> Path | None:
    """What `force` made of the choice."""
    return _forced


def force(path: Path | None) -> None:
    """Make every layer that can take `path`, for tests and measurements; None returns to the table."""
    global _forced
    _forced = path
