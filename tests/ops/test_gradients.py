"""What the backward of every op computes, saves and refuses."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import memmod.ops.backends.reference as reference
from memmod.errors import SelectionError
from tests.ops.backends import each_case
from tests.ops.bounds import run_op
from tests.ops.problems import Case, Problem

LINEAR = Case("modulated_linear", (6, 3, 9, 7), "sets", granularity="unit+input")
CONV = Case("modulated_conv2d", (6, 4, 5, 6, 8, 3), "sets", granularity="unit+input", options=(("padding", (1, 1)),))
OUTPUT = Case("modulate_output", (6, 5, 3, 4), "sets")
CASES = [LINEAR, CONV, OUTPUT]


def change(case: Case, **changes) -> Case:
    return Case(**{**{f: getattr(case, f) for f in case.__dataclass_fields__}, **changes})


def leaves(problem: Problem, *names: str) -> Problem:
    return problem.replace(**{n: getattr(problem, n).detach().requires_grad_() for n in names})


def forward(problem: Problem) -> torch.Tensor:
    return getattr(torch.ops.memmod, problem.op).default(*problem.args)[0]


@each_case([*CASES, change(LINEAR, gate_bias=False), change(CONV, gate_bias=False)])
def test_every_combination_of_needs(backend, case):
    problem = case.draw()
    every = run_op(problem)
    for size in range(1, len(problem.learnable) + 1):
        for needs in itertools.combinations(problem.learnable, size):
            some = run_op(problem, needs)
            assert some.keys() == {"y", *(f"d{name}" for name in needs)}
            for name, value in some.items():
                torch.testing.assert_close(value, every[name], rtol=1e-5, atol=1e-6)
                assert every[name].abs().max() > 0


@each_case(CASES)
def test_backward_returns_empty_for_what_is_not_needed(backend, case):
    problem = case.draw()
    y = forward(problem)
    nothing = [False] * len(problem.learnable)
    if case.op == "modulate_output":
        args = (problem.dy, y, problem.memory, problem.index, problem.dim, problem.gate, nothing)
    else:
        args = (problem.dy, list(problem.x.shape), problem.x, problem.weight, problem.memory, problem.input_memory)
        args += (problem.index, y, *problem.args[6:8], *problem.args[9:], nothing)
    for gradient in getattr(torch.ops.memmod, f"{case.op}_backward").default(*args):
        assert gradient.shape == (0,)


@pytest.mark.parametrize("gate", ["sigmoid", "identity"])
@pytest.mark.parametrize("gate_bias", [True, False])
@pytest.mark.parametrize("pattern", ["mixed", "sets"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.op)
def test_gradcheck_of_reference_and_op(case, pattern, gate_bias, gate):
    shape = {"modulated_linear": (4, 2, 3, 2), "modulated_conv2d": (4, 2, 3, 3, 2, 3), "modulate_output": (4, 3, 2)}
    case = change(case, shape=shape[case.op], pattern=pattern, gate_bias=gate_bias, gate=gate, classes=3)
    problem = case.draw().map(lambda t: t.double())
    # Away from gates so far closed that a finite difference is 0.
    tame = {n: t.clamp(-3, 3) for n in ("memory", "input_memory") if (t := getattr(problem, n)) is not None}
    problem = leaves(problem.replace(**tame), *problem.learnable)
    inputs = [getattr(problem, name) for name in problem.learnable]

    def through(fn):
        def call(*values):
            return fn(problem.replace(**dict(zip(problem.learnable, values, strict=True))))[0]

        return call

    assert torch.autograd.gradcheck(through(lambda p: getattr(reference, case.op)(p.call)), inputs)
    assert torch.autograd.gradcheck(through(lambda p: getattr(torch.ops.memmod, case.op).default(*p.args)), inputs)


@each_case(CASES)
def test_unselected_classes_get_exactly_zero(backend, case):
    problem = change(case, classes=9).draw()
    problem = problem.replace(index=problem.index.new_tensor([[3, -1], [5, 3], [-1, -1], [3, 3], [5, -1], [-1, -1]]))
    results = run_op(problem)
    for name in ("dmemory", "dinput_memory"):
        if name in results:
            selected = results[name].abs().amax(1) > 0
            assert selected.tolist() == [c in (3, 5) for c in range(9)]


@each_case(CASES)
def test_a_class_named_twice_counts_once(backend, case):
    problem = case.draw()
    once = run_op(problem.replace(index=problem.index[:, :1]))
    thrice = run_op(problem.replace(index=problem.index[:, :1].expand(-1, 3)))
    for name in once:
        assert torch.equal(once[name], thrice[name])


@each_case(CASES)
def test_memories_may_be_slices(backend, case):
    problem = case.draw()
    memories = {n: m for n in ("memory", "input_memory") if (m := getattr(problem, n)) is not None}
    slices = {n: torch.cat((m, m), 1)[:, : m.shape[1]] for n, m in memories.items()}
    transposed = {n: m.t().contiguous().t() for n, m in memories.items()}
    expected = run_op(problem)
    for changed in (slices, transposed):
        for name, value in run_op(problem.replace(**changed)).items():
            torch.testing.assert_close(value, expected[name])


@each_case([LINEAR, change(CONV, gate_bias=False)])
def test_a_bias_may_be_a_slice(backend, case):
    problem = case.draw()
    expected = run_op(problem)
    wide = torch.stack((problem.bias, -problem.bias), 1)
    for name, value in run_op(problem.replace(bias=wide[:, 0])).items():
        assert torch.equal(value, expected[name])


@each_case(CASES)
def test_gates_change_outputs_and_gradients(backend, case):
    problem = change(case, pattern="mixed").draw()
    with_gates = run_op(problem)
    without = run_op(problem.replace(index=torch.full_like(problem.index, -1)))
    for name in with_gates:
        if name != "dbias":
            assert not torch.allclose(with_gates[name], without[name], rtol=1e-2, atol=1e-2)


def _saved(problem: Problem) -> list[torch.Tensor]:
    """What the forward saves, without its inputs' storages and its output's counted twice."""
    packed: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        forward(problem)
    return packed


SAVED = [
    # learnable, options, tensors that are saved
    (("memory",), {}, {"y", "memory", "index"}),
    (("x",), {}, {"weight", "memory", "index"}),
    (("x", "memory"), {}, {"y", "weight", "memory", "index"}),
    (("weight",), {}, {"x", "memory", "index"}),
    (("bias",), {}, {"memory", "index"}),
    (("bias",), {"gate_bias": False}, {"index"}),
    (("memory",), {"gate_bias": False}, {"g", "memory", "index"}),
    (("memory",), {"keep_gated": True}, {"g", "memory", "index"}),
    (("memory",), {"gate": "identity"}, {"g", "memory", "index"}),
    (("x",), {"gate": "hard"}, {"weight", "memory", "index"}),
    (("input_memory",), {"granularity": "unit+input"}, {"x", "weight", "memory", "input_memory", "index"}),
    (("x", "memory"), {"granularity": "unit+input"}, {"y", "weight", "memory", "input_memory", "index"}),
]


@pytest.mark.parametrize("case", [LINEAR, CONV], ids=lambda c: c.op)
@pytest.mark.parametrize(
    ("needs", "options", "names"), SAVED, ids=lambda v: str(sorted(v)) if isinstance(v, set) else str(v)
)
def test_saves_only_what_the_gradients_read(case, needs, options, names):
    case = change(case, **{"granularity": "unit", **options})
    problem = leaves(case.draw(), *needs)
    if case.op == "modulated_conv2d" and "weight" in needs:
        names = names | {"weight"}
    sizes = {"y": forward(problem).shape, "g": forward(problem).shape}
    sizes |= {n: t.shape for n in (*problem.learnable, "index") if (t := getattr(problem, n)) is not None}
    assert sorted(t.shape for t in _saved(problem)) == sorted(sizes[name] for name in names)


@pytest.mark.parametrize(
    ("needs", "gate", "names"),
    [
        (("x",), "sigmoid", {"memory", "index"}),
        (("memory",), "sigmoid", {"y", "memory", "index"}),
        (("x", "memory"), "identity", {"x", "memory", "index"}),
    ],
)
def test_modulate_output_saves_one_tensor_of_its_size(needs, gate, names):
    problem = leaves(change(OUTPUT, gate=gate).draw(), *needs)
    big = [t for t in _saved(problem) if t.shape == problem.x.shape]
    assert len(_saved(problem)) == len(names)
    assert len(big) == len(names & {"x", "y"})


def _aten_calls(run) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    return {event.name for event in profiler.events()}


@pytest.mark.parametrize(
    ("case", "product"), [(LINEAR, "aten::mm"), (CONV, "aten::convolution_backward")], ids=["linear", "conv"]
)
@pytest.mark.parametrize("backend", ["reference"], indirect=True)
def test_frozen_weight_and_input_cost_no_product_in_backward(backend, case, product):
    case = change(case, granularity="unit")
    calls = {}
    for needs in (("memory",), ("x", "memory")):
        y = forward(leaves(case.draw(), *needs))
        calls[needs] = _aten_calls(lambda y=y: y.backward(torch.ones_like(y)))
    assert product not in calls[("memory",)]
    assert product in calls[("x", "memory")]


@each_case([Case("modulated_linear", (8, 64, 32, 128))])
def test_forward_allocates_nothing_else_of_the_outputs_size(backend, case):
    problem = case.draw()
    forward(problem)
    size = 8 * 64 * 128 * 4
    if problem.x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        forward(problem)
        assert torch.cuda.max_memory_allocated() - before < 1.5 * size
        return
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        forward(problem)
    assert len([e for e in profiler.events() if e.self_cpu_memory_usage >= size / 2]) == 1


@each_case(CASES)
def test_second_order_gradients_are_refused(backend, case):
    problem = leaves(case.draw(), "x", "memory")
    (dx,) = torch.autograd.grad(forward(problem), problem.x, problem.dy, create_graph=True)
    with pytest.raises(RuntimeError, match=f"memmod::{case.op} has no second-order gradients"):
        dx.sum().backward()


@each_case(CASES)
def test_output_changed_in_place_is_refused_unless_gated_is_kept(backend, case):
    problem = leaves(change(case, granularity="unit").draw(), "x", "memory")
    y = forward(problem)
    expected = torch.autograd.grad(forward(problem), problem.memory, problem.dy)[0]
    y += 1
    with pytest.raises(RuntimeError, match='keep="gated"'):
        y.backward(problem.dy)
    y = forward(problem.replace(keep_gated=True))
    y += 1
    assert torch.equal(torch.autograd.grad(y, problem.memory, problem.dy)[0], expected)


@each_case(CASES)
def test_results_are_no_views(backend, case):
    problem = leaves(case.draw(), *case.draw().learnable)
    y = forward(problem)
    assert not y._is_view()
    for gradient in torch.autograd.grad(y, [getattr(problem, n) for n in problem.learnable], problem.dy):
        assert not gradient._is_view()


@each_case(CASES)
def test_output_changed_in_place_is_fine_without_a_memory_gradient(backend, case):
    problem = leaves(change(case, granularity="unit").draw(), "x")
    y = forward(problem)
    y += 1
    (dx,) = torch.autograd.grad(y, problem.x, problem.dy)
    # A GPU may take another path where a memory's gradient is not asked for.
    torch.testing.assert_close(dx, run_op(problem)["dx"])


@each_case(CASES)
def test_backward_twice_says_what_torch_says(backend, case):
    problem = leaves(case.draw(), "memory")
    y = forward(problem)
    y.backward(problem.dy)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward(problem.dy)


@each_case(CASES)
def test_saved_tensors_and_inputs_are_never_written(backend, case):
    for layout in ("contiguous", "transposed"):
        problem = leaves(change(case, layout=layout, dy_layout=layout).draw(), *case.draw().learnable)
        before = problem.map(torch.clone)
        y = forward(problem)
        kept = y.detach().clone()
        for _ in range(2):
            y.backward(problem.dy, retain_graph=True)
        assert torch.equal(y, kept)
        for name in (*problem.learnable, "index", "dy"):
            assert torch.equal(getattr(problem, name), getattr(before, name))


@each_case(CASES)
def test_hard_gates_have_no_memory_gradient(backend, case):
    problem = change(case, gate="hard", granularity="unit", gate_bias=False).draw().replace(keep_gated=False)
    frozen = leaves(problem, "x")
    (dx,) = torch.autograd.grad(forward(frozen), frozen.x, problem.dy)
    assert dx.abs().max() > 0
    y = forward(leaves(problem, "x", "memory"))
    with pytest.raises(RuntimeError, match="hard"):
        y.backward(problem.dy)


@pytest.mark.parametrize("case", [LINEAR, CONV], ids=lambda c: c.op)
@pytest.mark.parametrize("options", [{"gate": "identity"}, {"gate_bias": False}], ids=str)
def test_memory_gradient_that_needs_more_than_the_output_is_refused(case, options):
    problem = leaves(change(case, granularity="unit", **options).draw().replace(keep_gated=False), "memory")
    with pytest.raises(SelectionError, match="keep_gated=True"):
        forward(problem)


@each_case(CASES)
def test_backward_inside_autocast_changes_nothing(backend, case):
    problem = case.draw()
    expected = run_op(problem)
    with torch.autocast(problem.x.device.type, dtype=torch.bfloat16):
        got = run_op(problem)
    for name in expected:
        assert torch.equal(got[name], expected[name])


@each_case([change(LINEAR, granularity="unit", gate_bias=False), change(CONV, granularity="unit", gate_bias=False)])
def test_the_gated_product_is_returned_only_on_request(backend, case):
    problem = case.draw()
    op = getattr(torch.ops.memmod, case.op).default
    y, g = op(*problem.replace(keep_gated=True).args)
    bias = problem.bias if case.op == "modulated_linear" else problem.bias.view(-1, 1, 1)
    torch.testing.assert_close(g + bias, y)
    assert op(*problem.replace(keep_gated=False).args)[1].shape == (0,)
