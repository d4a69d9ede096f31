"""The ops on a CUDA device: the bound, and classes out of range without waiting for the device."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests.ops.bounds import assert_within_bound, run_op
from tests.ops.problems import Case, Problem

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CASES = [
    *(Case("modulated_linear", (6, 5, 33, 31), p, granularity="unit+input") for p in ("mixed", "sets", "whole batch")),
    Case("modulated_linear", (6, 5, 33, 31), "sets", dtype=torch.bfloat16, gate_bias=False),
    Case("modulated_conv2d", (6, 8, 7, 5, 12, 3), "sets", granularity="unit+input", options=(("padding", (1, 1)),)),
    Case("modulated_conv2d", (6, 8, 7, 5, 12, 3), layout="channels_last", dy_layout="channels_last"),
    *(Case("modulate_output", (6, 31, 7, 5), pattern) for pattern in ("mixed", "sets", "whole batch")),
    Case("modulate_output", (6, 31, 7, 5), gate="identity", classes=40),
]


def on_device(problem: Problem) -> Problem:
    return problem.map(torch.Tensor.cuda).replace(index=problem.index.cuda())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_bound_and_the_same_bits_twice(case):
    problems = [on_device(case.draw(seed)) for seed in range(3)]
    assert_within_bound(problems)
    first, second = run_op(problems[0]), run_op(problems[0])
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("classes", [3, 40])
@pytest.mark.parametrize("wrong", [-2, 40, 2**40])
def test_a_class_out_of_range_gives_nan_in_its_rows_only(classes, wrong):
    x, memory = torch.randn(4, 5, device="cuda"), torch.randn(classes, 5, device="cuda")
    index = torch.tensor([0, wrong, -1, 2], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = torch.ops.memmod.modulate_output.default(x, memory, index, 1, "sigmoid", False)[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert y.isnan().all(1).tolist() == [False, True, False, False]
    assert torch.equal(y[2], x[2])


def test_memmod_check_asserts_on_the_device():
    code = (
        "import torch, memmod.ops\n"
        "x = torch.randn(2, 5, device='cuda')\n"
        "index = torch.tensor([0, 9], device='cuda')\n"
        "torch.ops.memmod.modulate_output.default(x, x, index, 1, 'sigmoid', False)\n"
        "torch.cuda.synchronize()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "MEMMOD_CHECK": "1"}, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "a selected class is not in -1 to 1" in done.stderr
