"""The C++ functions behind memmod.functional: bit for bit what the ops give, and None where only an op can serve."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from memmod import functional
from memmod.ops import dispatch
from tests.ops.bounds import run_op
from tests.ops.problems import Case, Problem

pytestmark = pytest.mark.skipif(
    dispatch.availability()["cpu"] is not None, reason=f"cpu: {dispatch.availability()['cpu']}"
)

linear = partial(Case, "modulated_linear")
conv = partial(Case, "modulated_conv2d")
output = partial(Case, "modulate_output")
CONV = (6, 8, 7, 5, 12, 3)
PADDED = (("padding", (1, 1)),)

CASES = [
    linear((6, 5, 33, 31)),
    linear((6, 5, 33, 31), "sets", granularity="unit+input"),
    linear((6, 33, 31), granularity="input"),
    linear((6, 33, 31), "whole batch"),
    linear((6, 33, 31), gate_bias=False),
    linear((6, 33, 31), gate="identity", bias=False),
    linear((6, 33, 31), keep_gated=True),
    linear((12, 33, 31), rows_per_sample=2, dtype=torch.bfloat16),
    linear((6, 33, 31), layout="transposed", dy_layout="strided"),
    conv(CONV, "sets", granularity="unit+input", options=PADDED),
    conv(CONV, layout="channels_last", dy_layout="channels_last", options=PADDED),
    conv(CONV, "whole batch", gate_bias=False),
    conv(CONV, keep_gated=True, options=(("stride", (2, 1)), ("dilation", (1, 2)))),
    conv((6, 8, 7, 5, 12, 1), dtype=torch.float16, layout="channels_last", dy_layout="channels_last"),
    conv(CONV, options=(("groups", 4),)),
    output((6, 31, 7, 5)),
    output((6, 31, 7, 5), "sets", layout="channels_last", dy_layout="channels_last", keep_gated=True),
    output((6, 7, 31), gate="identity", options=(("dim", -1),)),
]


def call(p: Problem, activation: str | None = None) -> torch.Tensor:
    """The problem's forward through memmod.functional."""
    options = {"gate": p.gate, "keep": "gated" if p.keep_gated else "output"}
    if p.op == "modulate_output":
        return functional.modulate_output(p.x, p.memory, p.index, dim=p.dim, **options)
    options.update(input_memory=p.input_memory, gate_bias=p.gate_bias, activation=activation)
    if p.op == "modulated_linear":
        return functional.modulated_linear(p.x, p.weight, p.bias, p.memory, p.index, **options)
    options.update(stride=p.stride, padding=p.padding, dilation=p.dilation, groups=p.groups)
    return functional.modulated_conv2d(p.x, p.weight, p.bias, p.memory, p.index, **options)


def run(p: Problem, needs: tuple[str, ...] | None = None, forward=call) -> dict[str, torch.Tensor]:
    """As `run_op`, through memmod.functional."""
    names = [n for n in p.learnable if getattr(p, n) is not None and (needs is None or n in needs)]
    leaves = {n: getattr(p, n).detach().requires_grad_() for n in names}
    y = forward(p.replace(**leaves))
    gradients = torch.autograd.grad(y, list(leaves.values()), p.dy)
    return {"y": y.detach(), **{f"d{n}": g for n, g in zip(names, gradients, strict=True)}}


@pytest.fixture
def served(monkeypatch):
    """For each call since, whether the C++ function served it."""
    answers: list[bool] = []

    def watch(serve, *args):
        y = serve(*args)
        answers.append(y is not None)
        return y

    eager = {op: (backend, partial(watch, serve)) for op, (backend, serve) in dispatch._eager.items()}
    monkeypatch.setattr(dispatch, "_eager", eager)
    return answers


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name
        assert value.stride() == b[name].stride(), name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_op(case, served, poisoned):
    problem = case.draw()
    same(run(problem), run_op(problem))
    assert served == [True]


@pytest.mark.parametrize("needs", [("memory",), ("x",), ("x", "memory"), ("weight",), ("bias", "memory")])
@pytest.mark.parametrize("case", CASES[:1] + CASES[9:11], ids=str)
def test_any_set_of_gradients_equals_the_op(case, needs, served):
    problem = case.draw()
    same(run(problem, needs), run_op(problem, needs))
    assert served == [True]


def relu_behind_the_op(p: Problem) -> torch.Tensor:
    learns = p.memory is not None and p.memory.requires_grad
    p = p.replace(keep_gated=p.keep_gated and learns)
    return torch.relu(getattr(torch.ops.memmod, p.op).default(*p.args)[0])


@pytest.mark.parametrize("needs", [None, ("memory",), ("x",), ("x", "memory"), ("weight", "bias")])
@pytest.mark.parametrize("case", CASES[:-3], ids=str)
def test_a_relu_inside_equals_one_behind(case, needs, served, poisoned):
    problem = case.draw()
    if needs is not None and problem.memory is None:
        needs = (*needs, "input_memory")
    got = run(problem, needs, partial(call, activation="relu"))
    same(got, run(problem, needs, relu_behind_the_op))
    assert served == [True]
    assert (got["y"] == 0).any() and (got["y"] > 0).any()


def test_a_relu_inside_keeps_one_output_and_lets_nan_pass():
    p = linear((6, 5, 33, 31)).draw()
    x = p.x.clone()
    x[1, 2] = float("nan")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = call(p.replace(x=x, memory=p.memory.clone().requires_grad_()), "relu")
    assert y[1, 2].isnan().all() and not y[0].isnan().any()
    assert [t.data_ptr() for t in kept if t.shape == y.shape] == [y.data_ptr()]


@pytest.mark.parametrize("case", CASES[:1] + CASES[9:11], ids=str)
def test_a_relu_without_gradients_or_selection(case):
    problem = case.draw()
    with torch.no_grad():
        assert torch.equal(call(problem, "relu"), relu_behind_the_op(problem))
        plain = problem.replace(index=None)
        assert torch.equal(call(plain, "relu"), torch.relu(call(plain)))


@pytest.mark.parametrize("case", CASES[:1] + CASES[9:10] + CASES[-3:-2], ids=str)
def test_without_gradients(case, served):
    problem = case.draw()
    expected = run_op(problem)["y"]
    with torch.no_grad():
        assert torch.equal(call(problem.replace(memory=problem.memory.requires_grad_())), expected)
    with torch.inference_mode():
        y = call(problem)
    assert torch.equal(y, expected) and y.is_inference()
    assert served == [True, True]


def test_autocast_casts_the_layer_and_not_the_memory(served):
    p = linear((6, 5, 33, 31)).draw()
    memory = p.memory.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = call(p.replace(memory=memory))
        y.sum().backward()
    low = p.replace(**{n: getattr(p, n).bfloat16() for n in ("x", "weight", "bias")})
    assert torch.equal(y, call(low))
    assert memory.grad.dtype is torch.float32 and served == [True, True]


@pytest.mark.parametrize("case", CASES[:1] + CASES[9:10] + CASES[-3:-2], ids=str)
def test_a_second_backward_gives_the_same_and_differentiating_it_is_refused(case):
    p = case.draw()
    memory, x = p.memory.clone().requires_grad_(), p.x.clone().requires_grad_()
    y = call(p.replace(memory=memory, x=x))
    first = torch.autograd.grad(y, (x, memory), p.dy, retain_graph=True)
    second = torch.autograd.grad(y, (x, memory), p.dy, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    dx, _ = torch.autograd.grad(y, (x, memory), p.dy, create_graph=True)
    with pytest.raises(RuntimeError, match="has no second-order gradients"):
        dx.sum().backward()


@pytest.mark.parametrize("case", CASES[:1] + CASES[9:10] + CASES[-3:-2], ids=str)
def test_an_output_changed_in_place_is_reported_with_the_way_out(case):
    p = case.draw()
    y = call(p.replace(memory=p.memory.clone().requires_grad_()))
    y.mul_(2)
    with pytest.raises(RuntimeError, match=f'backward of memmod::{p.op}.*keep="gated"'):
        y.sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant, served):
    p = linear((6, 5, 33, 31)).draw()
    memory, x = p.memory.clone().requires_grad_(), p.x.clone().requires_grad_()
    checkpoint(lambda x: call(p.replace(memory=memory, x=x)), x, use_reentrant=reentrant).backward(p.dy)
    expected = run_op(p, ("x", "memory"))
    assert torch.equal(memory.grad, expected["dmemory"]) and torch.equal(x.grad, expected["dx"])
    assert served and all(served)


def test_saved_tensors_pass_the_hooks():
    p = linear((6, 5, 33, 31)).draw()
    memory, packed = p.memory.clone().requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.clone()) or packed[-1], lambda t: t * 2):
        y = call(p.replace(memory=memory, index=p.index * 0))
    # Doubled on the way back: y doubles the gradient, the memory changes its gates.
    y.backward(p.dy)
    gate = 1 - torch.sigmoid(2 * p.memory[0])
    torch.testing.assert_close(memory.grad[0], gate * (p.dy * 2 * y.detach()).sum(dim=(0, 1)))


def test_threads_at_once():
    problems = [case.draw(seed) for seed in range(4) for case in (CASES[0], CASES[10], CASES[15])]
    expected = [run(problem) for problem in problems]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            got = run(problems[i])
            if any(not torch.equal(got[name], expected[i][name]) for name in got):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(problems))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.map(torch.Tensor.double),
        lambda p: p.replace(x=p.x.as_subclass(Subclass)),
        lambda p: p.replace(memory=p.memory.double()),
        lambda p: p.replace(gate="hard", memory=p.memory.clone().requires_grad_()),
    ],
)
def test_leaves_the_extraordinary_to_the_op(change, served):
    p = change(linear((6, 5, 33, 31)).draw())
    y = call(p)
    assert not any(served)
    torch.testing.assert_close(y, torch.ops.memmod.modulated_linear(*p.args)[0])


def test_leaves_another_backend_and_transforms_to_the_op(served):
    p = linear((6, 5, 33, 31)).draw()
    expected = call(p)
    dispatch.set_backend("reference")
    try:
        torch.testing.assert_close(call(p), expected)
    finally:
        dispatch.set_backend(None)
    compiled = torch.compile(lambda x: call(p.replace(x=x)), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(p.x), expected)
    # Neither another backend nor compiled code asks it.
    assert served == [True]
