"""Tile sizes: plain functions of shape, type and architecture, so that the same call always runs the same code.

Where a table does not say that it was measured, its numbers are counted: tiles as large as registers and shared memory
allow without spills (tests/triton/test_ahead_of_time.py), smaller ones where those would leave multiprocessors idle.
`python -m benchmarks.retune` measures them on a GPU and prints the tables anew.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton

# Of `architecture()`: kernels that Triton's interpreter runs on the CPU.
INTERPRETED = 0


class MatmulConfig(NamedTuple):
    """Tiles of block_m x block_n outputs in steps of block_k, in groups of group_m tiles of rows."""

    block_m: int
    block_n: int
    block_k: int
    group_m: int
    warps: int
    stages: int

    def launch(self) -> dict[str, int]:
        return {
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_K": self.block_k,
            "GROUP_M": self.group_m,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


class RowConfig(NamedTuple):
    """Blocks of block_b samples x block_t rows x block_k channels; a program takes `chunk` rows of its samples."""

    block_b: int
    block_t: int
    block_k: int
    chunk: int
    warps: int

    def launch(self) -> dict[str, int]:
        return {
            "BLOCK_B": self.block_b,
            "BLOCK_T": self.block_t,
            "BLOCK_K": self.block_k,
            "CHUNK": self.chunk,
            "num_warps": self.warps,
        }


class LineConfig(NamedTuple):
    """Blocks of block_l lines x block_i numbers; a program takes `chunk` numbers of its lines."""

    block_l: int
    block_i: int
    chunk: int
    warps: int

    def launch(self) -> dict[str, int]:
        return {"BLOCK_L": self.block_l, "BLOCK_I": self.block_i, "CHUNK": self.chunk, "num_warps": self.warps}


class ClassSumsConfig(NamedTuple):
    """A program sums `split` samples, block_b at a time, of block_k channels."""

    split: int
    block_b: int
    block_k: int
    warps: int

    def launch(self) -> dict[str, int]:
        return {"SPLIT": self.split, "BLOCK_B": self.block_b, "BLOCK_K": self.block_k, "num_warps": self.warps}


# By (architecture, bytes of an element), from the largest tile to the smallest. The first that still gives every
# multiprocessor a tile is taken; of the last, the one no taller than the rows need.
MATMUL: dict[tuple[int, int], tuple[MatmulConfig, ...]] = {
    (80, 2): (
        MatmulConfig(128, 128, 32, 8, 8, 4),
        MatmulConfig(64, 128, 32, 8, 4, 4),
        MatmulConfig(64, 64, 64, 8, 4, 3),
        MatmulConfig(16, 64, 64, 8, 4, 4),
    ),
    # Measured on NVIDIA H200, torch 2.11.0+cu130, triton 3.6.0 in bf16, time over the best candidate's: some rows
    # 1.15, few tiles 1.03, few rows 1.00. On many rows 128x256x64 took 0.94 to 1.13 of 128x128x64's time, but spills.
    (90, 2): (
        MatmulConfig(128, 128, 64, 8, 8, 3),
        MatmulConfig(64, 128, 64, 8, 4, 3),
        MatmulConfig(16, 128, 64, 8, 4, 4),
        MatmulConfig(16, 64, 128, 8, 4, 3),
    ),
    (100, 2): (
        MatmulConfig(128, 128, 64, 8, 8, 3),
        MatmulConfig(64, 64, 64, 8, 4, 4),
        MatmulConfig(16, 64, 64, 8, 4, 4),
    ),
    # An fp32 product is three TF32 products: more registers a tile.
    (80, 4): (
        MatmulConfig(128, 64, 32, 8, 8, 3),
        MatmulConfig(64, 64, 16, 8, 4, 4),
        MatmulConfig(16, 64, 32, 8, 4, 3),
    ),
    # Counted: of the tiles that were the fastest on the same, 128x64x32 with 4 warps does not compile in Triton 3.8
    # where samples have few rows, and 32x64x32 spills.
    (90, 4): (
        MatmulConfig(128, 64, 32, 8, 8, 3),
        MatmulConfig(64, 64, 32, 8, 4, 3),
        MatmulConfig(16, 64, 32, 8, 4, 4),
    ),
    (100, 4): (
        MatmulConfig(128, 64, 16, 8, 8, 4),
        MatmulConfig(64, 64, 32, 8, 4, 3),
        MatmulConfig(16, 32, 32, 8, 4, 4),
    ),
    # Small, so that small tests have several tiles each way and several steps.
    (INTERPRETED, 2): (MatmulConfig(32, 64, 32, 2, 4, 1), MatmulConfig(16, 32, 16, 2, 4, 1)),
    (INTERPRETED, 4): (MatmulConfig(32, 64, 32, 2, 4, 1), MatmulConfig(16, 32, 16, 2, 4, 1)),
}
# Multiprocessors that a choice of tiles has in mind, whatever the card: A100 has 108, H100 132, B200 148.
PROCESSORS = {80: 108, 90: 132, 100: 148, INTERPRETED: 2}


def matmul_config(rows: int, columns: int, dtype: torch.dtype, arch: int) -> MatmulConfig:
    """The tiles of a product with ``[rows, columns]`` outputs."""
    table = MATMUL[arch, dtype.itemsize]
    for config in table[:-1]:
        tiles = triton.cdiv(rows, config.block_m) * triton.cdiv(columns, config.block_n)
        if tiles >= PROCESSORS[arch]:
            return config
    return table[-1] if rows <= 2 * table[-1].block_m else table[-2]


# Elements of a block, and rows that one program sums: 32 or 16 numbers a thread, and enough programs.
ROWS, ROW_ELEMENTS = 64, {2: 4096, 4: 2048}
# The widest block of channels.
ROW_CHANNELS = 128
LINE_ELEMENTS, LINE_CHUNK = 2048, 4096


def _interpreted_elements(size: int) -> int:
    """Small blocks, so that small tests have several; larger ones where thousands would be interpreted."""
    return 512 if size < 4096 else 8192


def row_config(height: int, width: int, dtype: torch.dtype, arch: int, with_sums: bool) -> RowConfig:
    """The blocks of a pass over ``[samples, height, width]``."""
    elements = ROW_ELEMENTS[dtype.itemsize] if arch != INTERPRETED else _interpreted_elements(height * width)
    block_k = min(ROW_CHANNELS if arch != INTERPRETED else 16, triton.next_power_of_2(width))
    if block_k < 64 and arch != INTERPRETED:
        # Narrow rows: an offset for nearly every number; more of them spill.
        elements = min(elements, 1024)
    block_t = min(elements // block_k, ROWS, triton.next_power_of_2(height))
    block_b = elements // (block_k * block_t)
    chunk = ROWS if with_sums and height > block_t else block_t
    return RowConfig(block_b, block_t, block_k, chunk, 4)


def line_config(inner: int, arch: int) -> LineConfig:
    """The blocks of a pass over lines of `inner` numbers."""
    elements = LINE_ELEMENTS if arch != INTERPRETED else _interpreted_elements(inner)
    block_i = min(elements // 4, triton.next_power_of_2(inner))
    if block_i <= 128 and arch != INTERPRETED:
        elements = min(elements, 1024)
    chunk = min(LINE_CHUNK if arch != INTERPRETED else 2 * block_i, triton.cdiv(inner, block_i) * block_i)
    return LineConfig(elements // block_i, block_i, chunk, 4)


def class_sums_config(classes: int, width: int, arch: int) -> ClassSumsConfig:
    """The blocks of the sums by class of `width` channels."""
    block_k = min(128, triton.next_power_of_2(width))
    # 16 spill on sm_90 and sm_100.
    block_b = 8
    # Programs for every multiprocessor, or one that takes all samples where classes and channels are enough.
    split = 256 if classes * triton.cdiv(width, block_k) < 256 else 4096
    if arch == INTERPRETED:
        block_k, split = min(64, block_k), 2 * block_b
    return ClassSumsConfig(split, block_b, block_k, 4)


@functools.cache
def _capability(device: int) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(device)
    major = properties.major
    return 100 if major >= 10 else 90 if major == 9 else 80, properties.multi_processor_count


def architecture(device: torch.device) -> int:
    """The table's architecture for a device: 80, 90 or 100, each also serving what comes between; or `INTERPRETED`."""
    return INTERPRETED if device.type != "cuda" else _capability(device.index or 0)[0]


def programs(device: torch.device, config: MatmulConfig) -> int:
    """Persistent programs: as many as run at once."""
    if device.type != "cuda":
        return 3
    return _capability(device.index or 0)[1] * (1 if config.block_m * config.block_n > 128 * 128 else 2)


def every_config(arch: int, itemsize: int) -> dict[str, tuple[Any, ...]]:
    """All configurations that the functions above can return, by kernel: what the ahead-of-time checks compile."""
    dtype = torch.float32 if itemsize == 4 else torch.bfloat16
    sizes = [2**n for n in range(0, 15)]
    rows = {row_config(t, k, dtype, arch, s) for t in sizes for k in sizes for s in (False, True)}
    lines = {line_config(i, arch) for i in sizes}
    sums = {class_sums_config(c, k, arch) for c in (1, 1000) for k in sizes}
    return {
        "matmul": MATMUL[arch, itemsize],
        "rows": tuple(sorted(rows)),
        "lines": tuple(sorted(lines)),
        "class_sums": tuple(sorted(sums)),
    }
