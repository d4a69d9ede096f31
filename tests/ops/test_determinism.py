"""Same inputs, same bits; a sample's results do not depend on what the others hold or select, nor on the threads."""

from __future__ import annotations

import pytest
import torch

from tests.ops.backends import each_case
from tests.ops.bounds import run_op
from tests.ops.problems import Case

CASES = [
    Case("modulated_linear", (6, 5, 33, 31), "sets", granularity="unit+input"),
    Case("modulated_linear", (6, 5, 33, 31), "mixed", dtype=torch.bfloat16),
    Case("modulated_linear", (12, 33, 129), "mixed", rows_per_sample=2),
    Case("modulated_conv2d", (6, 8, 9, 7, 12, 3), "sets", granularity="unit+input"),
    Case("modulated_conv2d", (6, 8, 9, 7, 12, 3), "mixed", layout="channels_last", dy_layout="channels_last"),
    Case("modulated_conv2d", (6, 8, 9, 7, 8, 3), "mixed", options=(("groups", 8),)),
    Case("modulated_conv2d", (6, 8, 9, 7, 12, 1), "mixed", layout="channels_last", dy_layout="channels_last"),
    Case(
        "modulated_conv2d",
        (6, 48, 9, 7, 48, 3),
        "mixed",
        layout="channels_last",
        dy_layout="channels_last",
        options=(("groups", 48),),
    ),
    Case("modulated_linear", (6, 40, 129, 65), "mixed"),
    Case("modulate_output", (6, 31, 7, 5), "sets"),
    Case("modulate_output", (6, 31, 7, 5), "mixed", layout="channels_last", dy_layout="channels_last"),
    Case("modulate_output", (6, 7, 33), "mixed", dtype=torch.bfloat16, options=(("dim", -1),)),
    Case("modulate_output", (12, 31, 7), "mixed", rows_per_sample=2),
]


@each_case(CASES, every_isa=True)
def test_same_inputs_give_the_same_bits(backend, case):
    first, second = run_op(case.draw()), run_op(case.draw())
    for name in first:
        assert torch.equal(first[name], second[name]), name


@each_case(CASES, every_isa=True)
def test_a_sample_does_not_depend_on_what_the_others_hold_or_select(backend, case):
    problem, other = case.draw(), case.draw(seed=9)
    k, sample = case.rows_per_sample, 2
    rows = slice(k * sample, k * sample + k)
    index, x, dy = other.index.clone(), other.x.clone(), other.dy.clone()
    index[sample], x[rows], dy[rows] = problem.index[sample], problem.x[rows], problem.dy[rows]
    results = run_op(problem)
    for changed in (run_op(problem.replace(index=index)), run_op(problem.replace(index=index, x=x, dy=dy))):
        for name in ("y", "dx"):
            assert torch.equal(results[name][rows], changed[name][rows]), name
            assert not torch.equal(results[name], changed[name]), name


LAST = {"layout": "channels_last", "dy_layout": "channels_last"}
PADDED = (("padding", (1, 1)),)
# Frozen weights: the library's dW and db may depend on the threads. Sizes that several threads share.
FROZEN = [
    Case("modulated_linear", (3, 67, 257, 129), "distinct", granularity="unit+input"),
    Case("modulated_linear", (301, 257, 129), "mixed"),
    Case("modulated_linear", (301, 257, 129), "whole batch"),
    Case("modulated_linear", (3, 67, 257, 129), "sets", dtype=torch.bfloat16, gate_bias=False),
    Case("modulated_conv2d", (3, 33, 31, 33, 65, 3), "sets", options=PADDED, **LAST),
    Case("modulated_conv2d", (40, 33, 5, 7, 65, 3), "mixed", options=(*PADDED, ("stride", (2, 2))), **LAST),
    Case("modulated_conv2d", (3, 33, 31, 33, 65, 1), "mixed", **LAST),
    Case("modulated_conv2d", (1, 9, 127, 129, 33, 3), "one", options=PADDED, **LAST),
    Case("modulated_conv2d", (3, 96, 63, 65, 96, 3), "sets", options=(*PADDED, ("groups", 96)), **LAST),
]


@each_case(FROZEN, every_isa=True)
def test_bits_of_a_frozen_layer_do_not_depend_on_the_number_of_threads(backend, case, threads):
    if backend == "reference":
        pytest.skip("library products choose their order by the threads")
    problem = case.draw()
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        results.append(run_op(problem, ("x", "memory", "input_memory")))
    for other in results[1:]:
        for name in other:
            assert torch.equal(results[0][name], other[name]), name


THREADED = [
    Case("modulate_output", (3, 257, 301), "distinct"),
    Case("modulate_output", (3, 301, 257), "distinct", options=(("dim", -1),)),
    Case("modulate_output", (1, 1, 300_001), "one"),
    Case("modulate_output", (40_001, 1), "whole batch"),
    Case("modulate_output", (5, 40_003), "distinct", classes=5),
    Case("modulate_output", (5, 40_003), "distinct", classes=9),
    Case("modulate_output", (301, 257), "mixed", dtype=torch.bfloat16),
    Case("modulate_output", (3, 33, 63, 65), layout="channels_last", dy_layout="channels_last"),
]


@each_case(THREADED, every_isa=True)
def test_bits_do_not_depend_on_the_number_of_threads(backend, case, threads):
    problem = case.draw()
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        results.append(run_op(problem))
    for other in results[1:]:
        for name in other:
            assert torch.equal(results[0][name], other[name]), name


@each_case([Case("modulated_linear", (3, 257, 8, 301), "distinct")], every_isa=True)
def test_memory_gradients_of_a_layer_do_not_depend_on_the_number_of_threads(backend, case, threads):
    problem = case.draw()
    y = torch.ops.memmod.modulated_linear.default(*problem.args)[0]
    args = (problem.dy, list(problem.x.shape), None, None, problem.memory, None, problem.index, y, "sigmoid", True)
    bits = []
    for count in (1, 2, 7):
        threads(count)
        bits.append(torch.ops.memmod.modulated_linear_backward.default(*args, [False, False, False, True, False])[3])
    assert torch.equal(bits[0], bits[1]) and torch.equal(bits[0], bits[2])
