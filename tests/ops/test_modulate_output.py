"""memmod::modulate_output keeps the error bound for every kind of input."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from memmod import functional
from tests.ops.backends import backends, each_case, on_every_isa
from tests.ops.bounds import assert_within_bound, run_op
from tests.ops.problems import PATTERNS, Case

output = partial(Case, "modulate_output")
LAST = (("dim", -1),)

CASES = [
    *(output((6, 31, 7, 5), pattern) for pattern in PATTERNS),
    *(output((6, 5, 33), pattern, options=LAST) for pattern in PATTERNS),
    *(output((6, 31, 7, 5), pattern, gate="identity") for pattern in ("mixed", "sets", "repeated")),
    output((6, 31, 7, 5), keep_gated=True),
    output((12, 31, 7, 5), "sets", rows_per_sample=3),
    output((12, 5, 31), "mixed", rows_per_sample=4, options=LAST),
    output((6, 5, 9, 4), "mixed", options=(("dim", 2),)),
    output((6, 5, 9, 4, 3), "sets", options=(("dim", -2),)),
    output((4, 33), "mixed", classes=1),
    output((4, 33), "mixed", classes=1000),
    output((1023, 3), "skewed"),
    *(output(shape) for shape in ((1, 1), (3, 129), (2, 63, 127), (2, 127, 63), (2, 1, 1, 1023), (2, 1023, 1, 1))),
    *(output((2, 1023, 129), "distinct", options=options) for options in ((), LAST)),
    output((4, 3, 300, 300), "distinct"),
    output((4, 31, 63, 65), "whole batch"),
    *(output(shape) for shape in ((0, 5), (4, 0, 3), (4, 3, 0))),
    *(
        output(shape, "sets", dtype=dtype, options=options)
        for dtype in (torch.bfloat16, torch.float16)
        for shape, options in (((6, 31, 7, 5), ()), ((6, 7, 33), LAST), ((3, 300, 257), LAST), ((3, 31, 90, 91), ()))
    ),
    *(
        output((6, 31, 7, 5), layout=layout, dy_layout=dy_layout)
        for layout, dy_layout in (
            ("channels_last", "channels_last"),
            ("channels_last", "contiguous"),
            ("contiguous", "channels_last"),
            ("transposed", "transposed"),
            ("transposed", "contiguous"),
            ("strided", "strided"),
            ("expanded", "expanded"),
            ("contiguous", "one number"),
            ("one number", "one number"),
        )
    ),
    output((4, 33, 63, 65), "distinct", layout="channels_last", dy_layout="channels_last"),
]


@each_case(CASES, every_isa=True)
def test_within_bound(backend, case, poisoned):
    assert_within_bound([case.draw(seed) for seed in range(3)])


LAYOUTS = ("contiguous", "channels_last", "transposed", "strided", "expanded", "one number")


@each_case((output((6, 31, 7, 5), layout=layout, dy_layout=layout) for layout in LAYOUTS), every_isa=True)
def test_results_are_laid_out_as_their_inputs(backend, case):
    problem = case.draw()
    results = run_op(problem)
    assert results["y"].stride() == torch.empty_like(problem.x).stride()
    assert results["dx"].stride() == torch.empty_like(problem.dy).stride()


@pytest.mark.parametrize("backend", on_every_isa(b for b in backends("modulate_output") if b == "cpu"), indirect=True)
def test_gates_of_any_size_are_sigmoid_wherever_they_lie(backend):
    extremes = torch.tensor([torch.inf, -torch.inf, torch.nan, -88.73, -88.72, -87.4, 0.0, 1e-30, -1e30])
    memory = torch.cat([torch.linspace(-120, 120, 4801), extremes])[None].requires_grad_()
    x, first = torch.ones_like(memory), torch.tensor([0])
    y = functional.modulate_output(x, memory, first)
    (gradient,) = torch.autograd.grad(y.sum(), memory)
    alpha = memory.detach()
    exact, least = torch.sigmoid(alpha.double()), torch.finfo(torch.float32).tiny
    unit, known = torch.finfo(torch.float32).eps, ~alpha.isnan()
    assert ((y - exact).abs() <= 2 * unit * exact + least)[known].all()
    slope = exact * torch.sigmoid(-alpha.double())
    assert ((gradient - slope).abs() <= 4 * unit * slope + 2 * least)[known].all()
    assert y[~known].isnan().all() and gradient[~known].isnan().all()
    order = torch.randperm(memory.shape[1], generator=torch.Generator().manual_seed(0))
    assert torch.equal(functional.modulate_output(x, alpha[:, order], first).nan_to_num(7), y[:, order].nan_to_num(7))
