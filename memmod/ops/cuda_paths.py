"""Which calls the CUDA C++ kernels take on a GPU, and which they leave to Triton's; by count, not measured on a GPU."""

from __future__ import annotations

# Rows that csrc/include/kernels.h serves in one reading of the weight.
SMALL_ROWS = 16
