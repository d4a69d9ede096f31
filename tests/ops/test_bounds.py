"""The error bound itself: it lets correct results pass and catches small mistakes."""

from __future__ import annotations

import pytest
import torch

from tests.ops import bounds
from tests.ops.bounds import assert_within_bound, measure, run_op, run_oracle, run_plain
from tests.ops.problems import Case, Problem

CASES = [
    Case("modulated_linear", (6, 5, 33, 31), "sets", granularity="unit+input"),
    Case("modulated_conv2d", (6, 8, 7, 5, 12, 3), "sets", granularity="unit+input"),
    Case("modulate_output", (6, 31, 7, 5), "sets"),
]


def wrong(name: str):
    """The op with one result slightly wrong: one element off by a thousandth of the largest."""

    def run(problem: Problem):
        results = run_op(problem)
        changed = results[name].clone()
        changed.view(-1)[-1] += 1e-3 * changed.abs().max()
        return {**results, name: changed}

    return run


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.op)
def test_a_small_mistake_in_any_result_is_caught(case):
    problems = [case.draw(seed) for seed in range(3)]
    assert_within_bound(problems)
    for name in run_op(problems[0]):
        with pytest.raises(AssertionError, match=f"{name}: error"):
            assert_within_bound(problems, wrong(name))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.op)
def test_nan_and_wrong_dtypes_are_caught(case):
    problems = [case.draw()]
    with pytest.raises(AssertionError, match="y has NaN"):
        assert_within_bound(problems, lambda p: {**run_op(p), "y": run_op(p)["y"].fill_(float("nan"))})
    with pytest.raises(AssertionError, match="dx"):
        assert_within_bound(problems, lambda p: {**run_op(p), "dx": run_op(p)["dx"].double()})


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.op)
def test_selecting_other_classes_is_caught(case):
    problems = [case.draw()]
    with pytest.raises(AssertionError, match="y: error"):
        assert_within_bound(problems, lambda p: run_op(p.replace(index=p.index.roll(1, 0))))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.op)
def test_plain_pytorch_in_fp64_is_the_oracle(case):
    problem = case.draw().map(torch.Tensor.double)
    plain, oracle = run_plain(problem), run_oracle(problem)
    for name in oracle:
        torch.testing.assert_close(plain[name], oracle[name], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided", "expanded", "one number", "channels_last"])
def test_problems_keep_their_layout_on_another_device(layout):
    case = Case("modulate_output", (6, 5, 3, 4), "strided", layout=layout, dy_layout=layout)
    problem = case.draw()
    moved = problem.to("meta")
    for name in ("x", "dy", "memory", "index"):
        here, there = getattr(problem, name), getattr(moved, name)
        assert there.is_meta
        assert (there.shape, there.stride(), there.dtype) == (here.shape, here.stride(), here.dtype)


def test_the_oracle_of_a_problem_is_computed_once(monkeypatch):
    problem, computed = CASES[0].draw(seed=11), []
    monkeypatch.setattr(bounds, "run_oracle", lambda p, needs=None: computed.append(p) or run_oracle(p, needs))
    for _ in range(3):
        assert_within_bound([CASES[0].draw(seed=11)], needs=("x",))
    # Its results, and the magnitudes of its sums.
    assert len(computed) == 2
    x, memory = problem.x.clone(), problem.memory.clone()
    x[0, 0, 0] += 1
    memory[0, 0] += 1
    for other in (
        problem.replace(x=x),
        problem.replace(memory=memory),
        problem.replace(index=problem.index.flip(0)),
        problem.replace(gate="identity"),
        problem.replace(gate_bias=False),
        problem.replace(x=problem.x.transpose(0, 1).contiguous().transpose(0, 1)),
    ):
        computed.clear()
        measured = measure(other, ("x",))
        assert len(computed) == 2 and measured.exact.keys() == {"y", "dx"}
    computed.clear()
    assert measure(problem, ("x", "memory")).exact.keys() == {"y", "dx", "dmemory"} and len(computed) == 2


def test_no_more_than_a_few_oracles_are_kept():
    for seed in range(bounds.KEPT + 3):
        measure(CASES[2].draw(seed))
    assert len(bounds._kept) == bounds.KEPT
