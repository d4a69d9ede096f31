"""Linear, conv2d and the tail in fp32, bf16 and fp16 on a CUDA device, in each variant: what to know first."""

from __future__ import annotations

import pytest
import torch

from tests.ops.bounds import assert_within_bound
from tests.ops.problems import Case
from tests.ops.test_cuda import on_device, variant  # noqa: F401

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

LAST = {"layout": "channels_last", "dy_layout": "channels_last"}
PADDED = (("padding", (1, 1)),)
# Several tiles each way, every edge off its tile.
CASES = [
    Case(op, shape, pattern, dtype=dtype, **given)
    for op, shape, pattern, given in (
        ("modulated_linear", (7, 197, 192, 200), "mixed", {"granularity": "unit+input"}),
        ("modulated_linear", (7, 192, 200), "sets", {}),
        ("modulated_conv2d", (5, 64, 15, 13, 72, 3), "mixed", {"options": PADDED, **LAST}),
        ("modulated_conv2d", (5, 64, 15, 13, 72, 1), "sets", LAST),
        ("modulate_output", (7, 64, 15, 13), "mixed", LAST),
        ("modulate_output", (7, 197, 200), "sets", {"options": (("dim", -1),)}),
    )
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_bound(variant, case):  # noqa: F811
    assert_within_bound([on_device(case.draw(seed)) for seed in range(2)])
