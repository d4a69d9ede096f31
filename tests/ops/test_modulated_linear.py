"""memmod::modulated_linear keeps the error bound for every kind of input."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch

from tests.ops.backends import each_case, on_every_isa
from tests.ops.bounds import assert_within_bound
from tests.ops.problems import PATTERNS, Case

linear = partial(Case, "modulated_linear")

CASES = [
    *(linear((6, 5, 33, 31), pattern, granularity="unit+input") for pattern in PATTERNS),
    *(linear((6, 5, 33, 31), pattern, gate_bias=False) for pattern in ("mixed", "sets", "whole batch")),
    *(linear((6, 5, 33, 31), p, gate="identity", granularity="unit+input") for p in ("mixed", "sets", "repeated")),
    linear((6, 5, 33, 31), "sets", gate="identity", gate_bias=False),
    linear((6, 5, 33, 31), granularity="input"),
    linear((6, 5, 33, 31), granularity="input", gate_bias=False),
    linear((6, 5, 33, 31), bias=False, gate_bias=False),
    linear((6, 5, 33, 31), keep_gated=True, granularity="unit+input"),
    linear((6, 5, 33, 31), keep_gated=True, gate_bias=False),
    linear((12, 5, 33, 31), "sets", rows_per_sample=3, granularity="unit+input"),
    linear((4, 33, 31), "mixed", classes=1),
    linear((4, 33, 31), "sets", classes=1),
    linear((4, 33, 31), "mixed", classes=1000),
    linear((7, 33, 31), "skewed"),
    *(linear(shape, granularity="unit+input") for shape in ((1, 1, 1), (2, 63, 127), (3, 2, 129, 1023), (2, 1023, 3))),
    linear((33, 3, 2, 5, 7), "skewed"),
    linear((2, 200, 1023, 63), "distinct"),
    *(linear(shape, granularity="unit+input") for shape in ((0, 5, 3), (4, 0, 5, 3), (4, 2, 5, 0), (4, 2, 0, 3))),
    linear((0, 5, 3), "sets", granularity="unit+input"),
    *(
        linear((6, 5, 33, 31), "sets", dtype=dtype, granularity="unit+input", gate_bias=gate_bias)
        for dtype, gate_bias in product((torch.bfloat16, torch.float16), (True, False))
    ),
    linear((6, 300, 63, 127), dtype=torch.bfloat16),
    linear((2, 300, 63, 1023), "whole batch", dtype=torch.bfloat16),
    # Rows that the CPU reads where they are, all but the last few; in one pass and in two.
    linear((3, 197, 96, 160), dtype=torch.bfloat16),
    linear((1, 33, 4128, 63), "mixed", dtype=torch.bfloat16),
    *(
        linear((6, 5, 33, 31), layout=layout, dy_layout=dy_layout, granularity="unit+input", gate_bias=False)
        for layout, dy_layout in (
            ("transposed", "contiguous"),
            ("strided", "strided"),
            ("expanded", "expanded"),
            ("contiguous", "transposed"),
            ("one number", "one number"),
        )
    ),
]


@each_case(CASES, every_isa=True)
def test_within_bound(backend, case, poisoned):
    assert_within_bound([case.draw(seed) for seed in range(3)])


@pytest.mark.parametrize("backend", on_every_isa(["cpu"]), indirect=True)
def test_within_bound_of_as_many_inputs_as_one_pass_sums(backend):
    """Many sums, so that the largest error is near what chains of this length can have."""
    assert_within_bound([linear((1024, 1024, 1024)).draw()])
