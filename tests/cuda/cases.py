"""Problems with several steps, columns and blocks each way, every edge off its tile; small enough for sanitizers."""

from __future__ import annotations

import torch

from tests.ops.problems import Case, Problem

LAST = {"layout": "channels_last", "dy_layout": "channels_last"}
PADDED = (("padding", (1, 1)),)
CHANNELS_LAST = (("dim", -1),)
BOTH = "unit+input"

# Of the tail: rows in two chunks of 64 and one not full, two blocks of channels, with and without vectors; lines with
# numbers before and behind their vectors, and a line of two chunks; few rows of a sample.
ROWS = Case("modulate_output", (3, 131, 264), options=CHANNELS_LAST)
ROWS_BF16 = Case("modulate_output", (2, 70, 520), "sets", dtype=torch.bfloat16, options=CHANNELS_LAST)
ODD_ROWS = Case("modulate_output", (3, 66, 37), "sets", options=CHANNELS_LAST)
# Without sums blocks of 12 rows, four of a thread, in which samples end.
MANY_ROWS = Case("modulate_output", (32, 50, 129), options=CHANNELS_LAST)
LINES = Case("modulate_output", (3, 5, 9, 7))
LINES_BF16 = Case("modulate_output", (2, 3, 4103), "sets", dtype=torch.bfloat16)
FEW = Case("modulate_output", (19, 2, 37), gate="identity", options=CHANNELS_LAST)
# Of the layers: 3 and 11 rows, 5 steps of 256 inputs and 2 of 256 vectors, 10 and 9 blocks of units.
SMALL = Case("modulated_linear", (3, 1031, 37), granularity=BOTH)
SMALL_WIDE = Case("modulated_linear", (11, 2072, 35), "sets", dtype=torch.bfloat16, granularity=BOTH)
# Tiles of 128 rows in which two and four samples meet, two tiles of units, more tiles than blocks, two and three steps.
FUSED = Case("modulated_linear", (3, 130, 136, 200), dtype=torch.float16)
FUSED_SETS = Case("modulated_linear", (6, 49, 72, 264), "sets", dtype=torch.bfloat16)
# Two blocks of pixels, two of units, and 5 to 10 steps; 9 x 6 or 9 x 8 inputs.
CONV = Case("modulated_conv2d", (2, 6, 9, 9, 67, 3), granularity=BOTH, options=PADDED, **LAST)
CONV_BF16 = Case("modulated_conv2d", (2, 8, 9, 9, 67, 3), "sets", dtype=torch.bfloat16, options=PADDED, **LAST)
CONV_F16 = Case(
    "modulated_conv2d",
    (2, 16, 11, 9, 72, 3),
    dtype=torch.float16,
    gate_bias=False,
    options=(("padding", (2, 1)), ("stride", (1, 1)), ("dilation", (2, 1))),
    **LAST,
)
CONV_STRIDE = Case(
    "modulated_conv2d",
    (4, 12, 13, 13, 66, 3),
    gate="identity",
    options=(("padding", (1, 1)), ("stride", (2, 2))),
    **LAST,
)
# A long sum in fp32, 36 steps: of 576 numbers, three products each.
CONV_LONG = Case("modulated_conv2d", (1, 64, 8, 15, 72, 3), options=PADDED, **LAST)
CASES = (
    ROWS,
    ROWS_BF16,
    ODD_ROWS,
    MANY_ROWS,
    LINES,
    LINES_BF16,
    FEW,
    SMALL,
    SMALL_WIDE,
    FUSED,
    FUSED_SETS,
    CONV,
    CONV_BF16,
    CONV_F16,
    CONV_STRIDE,
    CONV_LONG,
)


def frozen(problem: Problem) -> tuple[str, ...]:
    """What a step with frozen weights differentiates; the library's sums of the others are not the kernels'."""
    return tuple(n for n in ("x", "bias", "memory", "input_memory") if getattr(problem, n) is not None)
