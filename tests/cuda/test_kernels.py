"""The CUDA kernels of csrc/cuda, executed on the CPU: right, and the same under every schedule of their threads."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

from memmod.ops import modulate_output, modulated_conv2d, modulated_linear
from memmod.ops.backends.cuda.primitives import CUDA, convolve
from tests.cuda import plugin
from tests.cuda.cases import (
    CASES,
    CONV,
    CONV_BF16,
    LINES,
    LINES_BF16,
    MANY_ROWS,
    ODD_ROWS,
    ROWS,
    ROWS_BF16,
    SMALL,
    frozen,
)
from tests.cuda.tail import assert_bias, assert_relu, one_pass
from tests.ops.bounds import assert_within_bound, run_op, run_oracle
from tests.ops.problems import Case
from tests.ops.test_cuda import assert_nan_in_rows_of_one_sample

pytestmark = pytest.mark.cuda_host

SEEDS = range(5) if os.environ.get("MEMMOD_CUDA_HOST", "plain") == "plain" else range(2)


@pytest.fixture
def seed(pytestconfig):
    return pytestconfig.stash[plugin.SHIM].memmod_host_seed


@pytest.mark.parametrize("case", CASES, ids=str)
def test_right_and_the_same_under_every_schedule(case, seed, poisoned):
    problem = case.draw()
    needs = frozen(problem)
    results = []
    for number in SEEDS:
        seed(number)
        results.append(run_op(problem, needs))
    for other in results[1:]:
        for name, value in other.items():
            assert torch.equal(value, results[0][name]), f"{name} depends on the schedule"
    assert_within_bound([problem], lambda p: results[0], needs)


@pytest.mark.parametrize("case", [ROWS, ODD_ROWS, LINES, SMALL, CONV], ids=str)
def test_a_class_out_of_range_gives_nan_in_its_rows_only(case, monkeypatch):
    # On a GPU no op looks at the index.
    for op in (modulated_linear, modulated_conv2d, modulate_output):
        monkeypatch.setattr(op, "check_classes", lambda *args: None)
    shape = (8, *case.shape[1:3]) if case.op == "modulated_linear" else (8, *case.shape[1:])
    values = {f: getattr(case, f) for f in case.__dataclass_fields__}
    values |= {"shape": shape, "rows_per_sample": 2, "pattern": "sets"}
    assert_nan_in_rows_of_one_sample(Case(**values).draw(), case.classes)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("case", [CONV, CONV_BF16], ids=str)
def test_relu_behind_a_convolution(case, relu):
    problem = case.draw().replace(input_memory=None)
    gates = CUDA.gates(problem.memory, problem.index, problem.gate)
    y = torch.empty_like(problem.dy)
    geometry = (*problem.stride, *problem.padding, *problem.dilation)
    weight = problem.weight.permute(0, 2, 3, 1)
    convolve(problem.x, weight, y, gates, problem.index, geometry, bias=problem.bias, relu=relu)
    expected = run_op(problem, ())["y"]
    assert (expected < 0).any() and (expected > 0).any()
    assert torch.equal(y, expected.relu() if relu else expected)


TAILS = [ROWS, ROWS_BF16, ODD_ROWS, MANY_ROWS, LINES, LINES_BF16]


@pytest.mark.parametrize("case", TAILS, ids=str)
def test_relu_behind_the_tail(case):
    assert_relu(case.draw())


@pytest.mark.parametrize("case", TAILS, ids=str)
def test_bias_inside_of_the_gates_and_outside(case):
    assert_bias(case.draw())


def test_a_bias_inside_has_no_products():
    problem = ROWS.draw()
    gates = CUDA.gates(problem.memory, problem.index, problem.gate)
    bias = torch.zeros(problem.memory.shape[1])
    with pytest.raises(RuntimeError, match="without a bias inside"):
        one_pass(problem.x, gates, problem.dim, other=problem.dy, bias=bias, bias_inside=True)


def test_a_row_is_the_same_among_few_and_many():
    problem = dataclasses.replace(SMALL, shape=(11, 1031, 37)).draw()
    among_all = run_op(problem, ())["y"]
    for rows in (1, 3):
        few = problem.replace(x=problem.x[:rows], dy=problem.dy[:rows], index=problem.index[:rows])
        assert torch.equal(run_op(few, ())["y"], among_all[:rows])


def test_tf32_where_it_is_allowed():
    problem = CONV.draw()
    error = {}
    for allowed in (False, True):
        torch.backends.cudnn.allow_tf32 = allowed
        try:
            error[allowed] = (run_op(problem, ())["y"] - run_oracle(problem, ())["y"]).abs().max().item()
        finally:
            torch.backends.cudnn.allow_tf32 = False
    # TF32 keeps 10 bits of 23.
    assert error[True] > 100 * error[False]
