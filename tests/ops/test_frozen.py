"""Layers with frozen weights, whose backward is one kernel where nothing else reads the gated gradient, keep the bound.

The shapes reach what the CPU kernels choose between: tiles, planes of bf16, direct convolutions; several tasks, passes
over the channels, bands of an image and images of a task; channels, units and rows that fill nothing up.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from memmod.ops import dispatch
from tests.ops.backends import each_case
from tests.ops.bounds import assert_within_bound, run_op
from tests.ops.problems import Case
from tests.ops.test_eager import call, relu_behind_the_op, run

linear = partial(Case, "modulated_linear")
conv = partial(Case, "modulated_conv2d", layout="channels_last", dy_layout="channels_last")
NEEDS = ("x", "memory", "input_memory")


def padded(padding: int = 1, **values):
    return (("padding", (padding, padding)), *values.items())


CASES = [
    linear((6, 5, 33, 31), "sets", granularity="unit+input"),
    linear((3, 67, 257, 129), "distinct", granularity="unit+input"),
    linear((3, 400, 96, 64), "sets", classes=4),
    linear((5, 33, 1100, 40), "mixed", gate="identity", granularity="unit+input"),
    linear((4, 70, 40, 2300), "mixed", gate_bias=False),
    linear((130, 64, 1056), "whole batch"),
    linear((1, 300, 128), "one", keep_gated=True),
    *(
        linear(shape, pattern, dtype=torch.bfloat16, gate_bias=gate_bias)
        for shape, pattern, gate_bias in (
            ((3, 67, 257, 129), "sets", False),
            ((4, 200, 96, 64), "mixed", True),
            ((2, 96, 800, 448), "distinct", True),
            ((64, 32, 33), "skewed", True),
        )
    ),
    linear((3, 67, 96, 129), "sets", dtype=torch.float16),
    conv((3, 32, 31, 33, 40, 3), "sets", granularity="unit+input", options=padded()),
    conv((2, 64, 61, 57, 32, 3), "distinct", options=padded()),
    conv((1, 32, 129, 65, 32, 3), "one", options=padded()),
    conv((9, 32, 8, 8, 64, 3), "mixed", rows_per_sample=3, options=padded()),
    conv((5, 96, 7, 9, 70, 3), "sets", gate="identity", options=padded()),
    conv((3, 33, 40, 40, 33, 3), "mixed", gate_bias=False, options=padded(0)),
    conv((3, 32, 30, 30, 32, 5), "mixed", options=padded(1)),
    conv((3, 32, 30, 30, 32, 3), "mixed", options=padded(2)),
    conv((3, 32, 30, 30, 32, 3), "mixed", options=padded(3)),
    conv((2, 32, 41, 30, 32, 3), "distinct", options=padded(2, dilation=(2, 1))),
    conv((2, 32, 70, 70, 32, 5), "distinct", options=padded(4, kernel_width=1)),
    conv((3, 32, 16, 16, 32, 3), "whole batch set", keep_gated=True, options=padded()),
    conv((4, 24, 20, 20, 24, 3), "mixed", options=padded(1, stride=(2, 2))),
    conv((2, 64, 20, 21, 96, 1), "distinct"),
    conv((2, 64, 20, 21, 96, 1), "distinct", dtype=torch.bfloat16),
]


@each_case(CASES, every_isa=True)
def test_within_bound(backend, case, poisoned):
    assert_within_bound([case.draw(seed) for seed in range(3)], needs=NEEDS)


@each_case([linear((3, 40, 96, 129), "mixed"), conv((3, 32, 16, 16, 40, 3), "mixed", options=padded())], every_isa=True)
def test_an_infinite_input_shows_in_its_own_sample_only(backend, case):
    problem = case.draw()
    x = problem.x.clone()
    x[1, 0, 3] = float("inf")
    finite, y = run_op(problem, ())["y"], run_op(problem.replace(x=x), ())["y"]
    assert not y[1].isfinite().all()
    assert torch.equal(y[[0, 2]], finite[[0, 2]])


RELU = [case for case in CASES if case.gate == "sigmoid" and case.gate_bias and not case.keep_gated]


@pytest.mark.skipif(dispatch.availability()["cpu"] is not None, reason=f"cpu: {dispatch.availability()['cpu']}")
@pytest.mark.parametrize("case", RELU, ids=str)
def test_a_relu_inside_equals_one_behind(case, poisoned):
    problem = case.draw()
    inside = run(problem, NEEDS, partial(call, activation="relu"))
    behind = run(problem, NEEDS, relu_behind_the_op)
    assert (inside["y"] == 0).any() and (inside["y"] > 0).any()
    for name, value in behind.items():
        assert torch.equal(inside[name], value), name
