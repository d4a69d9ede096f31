"""The C++ functions behind memmod.functional for a GPU's tensors: bit for bit what the ops give. Under the host shim
(`pytest -p tests.cuda.plugin`) they run on the CPU."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from memmod import functional
from memmod.errors import BackendError
from memmod.ops import dispatch, eager
from memmod.ops.backends import gpu_policy
from memmod.ops.backends.cpu import extension
from memmod.ops.backends.cuda import register as cuda_kernels
from tests.ops.bounds import assert_within_bound, run_op
from tests.ops.problems import Case
from tests.ops.test_eager import CASES as ANYWHERE
from tests.ops.test_eager import CONV, PADDED, call, conv, linear, relu_behind_the_op, run, same

dispatch.load()
HOST = cuda_kernels.device_type() == "cpu"
MISSING = None if HOST else dispatch.availability()["cuda"]
pytestmark = [
    *([] if HOST else [pytest.mark.gpu]),
    pytest.mark.skipif(MISSING is not None, reason=f"cuda: {MISSING}"),
    pytest.mark.skipif(extension.module() is None, reason=f"cpu: {dispatch.availability()['cpu']}"),
]

LAST = {"layout": "channels_last", "dy_layout": "channels_last"}
# Of a whole batch, gates in the weight where the output has more rows than a unit has inputs; and outside.
FOLDED = [
    linear((6, 9, 33, 31), "whole batch"),
    linear((6, 9, 33, 31), "whole batch", granularity="unit+input", dtype=torch.float16),
    linear((6, 9, 33, 31), "whole batch", granularity="input"),
    conv(CONV, "whole batch", granularity="unit+input", options=PADDED, layout="weights channels_last"),
    conv(CONV, "whole batch", bias=False, dtype=torch.float16, options=PADDED, **LAST),
]
OUTSIDE = [
    linear((4, 8, 33, 31), "whole batch", granularity="unit+input"),
    # The library would add the bias by a pass of its own.
    conv(CONV, "whole batch", dtype=torch.float16, options=PADDED, **LAST),
    conv(CONV, "whole batch", gate_bias=False, options=PADDED),
    conv((1, 8, 7, 5, 12, 3), "whole batch", options=PADDED),
    conv((1, 8, 7, 5, 12, 3), "whole batch", granularity="unit+input", options=PADDED, **LAST),
]
CASES = [
    *(case for case in ANYWHERE if case.dtype != torch.bfloat16 or not HOST),
    # What linear_fused serves, where the device has it.
    Case("modulated_linear", (6, 64, 24, 40), dtype=torch.float16),
    Case("modulated_linear", (6, 64, 24, 40), "whole batch", dtype=torch.float16),
    Case("modulated_conv2d", (6, 8, 8, 8, 16, 1), "sets", dtype=torch.float16, **LAST),
    Case("modulated_linear", (12, 33, 31), "whole batch", granularity="unit+input"),
    Case("modulated_linear", (4, 9, 24, 32), "sets", gate="identity", granularity="unit+input", gate_bias=False),
    Case("modulated_linear", (4, 24, 32), "sets", keep_gated=True, granularity="unit+input"),
    Case("modulated_conv2d", (6, 8, 7, 5, 12, 3), "sets", gate="identity", granularity="unit+input", **LAST),
    Case("modulated_conv2d", (6, 8, 7, 5, 12, 3), "whole batch", granularity="unit+input", options=PADDED, **LAST),
    Case("modulated_conv2d", (6, 8, 7, 5, 8, 3), granularity="unit+input", options=(("groups", 8), *PADDED), **LAST),
    Case("modulate_output", (6, 31, 7, 5), "sets", layout="transposed"),
    *FOLDED,
    *OUTSIDE,
]


@pytest.fixture(autouse=True)
def answers(monkeypatch):
    """For each call since, whether a C++ function for a GPU served it."""
    found: list[bool] = []

    def watch(serve, *args):
        y = serve(*args)
        found.append(y is not None)
        return y

    module, device = extension.module(), cuda_kernels.device_type()
    serves = {"modulated_linear": module.linear, "modulated_conv2d": module.conv2d, "modulate_output": module.output}
    for op, serve in serves.items():
        monkeypatch.setitem(dispatch._eager, (op, device), ("cuda", partial(watch, eager.on_gpu(op, serve))))
    forced, path = dispatch.get_backend(), gpu_policy.forced()
    dispatch.set_backend("cuda")
    gpu_policy.force(None)
    module.gpu_layers_on_cpu(HOST)
    yield found
    module.gpu_layers_on_cpu(False)
    gpu_policy.force(path)
    dispatch.set_backend(forced)


def draw(case, seed: int = 0):
    return case.draw(seed).to(cuda_kernels.device_type())


def assert_same(got, expected, case) -> None:
    if HOST and case.op == "modulated_conv2d":
        # The bits of the CPU's convolutions follow the addresses of what they are given.
        torch.testing.assert_close(got, expected)
        assert {n: t.stride() for n, t in got.items()} == {n: t.stride() for n, t in expected.items()}
    else:
        same(got, expected)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_op(case, answers, poisoned):
    problem = draw(case)
    assert_same(run(problem), run_op(problem), case)
    assert answers == [True]


@pytest.mark.parametrize("needs", [("memory",), ("x",), ("x", "memory"), ("weight",), ("bias", "memory")])
@pytest.mark.parametrize("case", CASES[:1] + CASES[9:11], ids=str)
def test_any_set_of_gradients_equals_the_op(case, needs, answers):
    problem = draw(case)
    assert_same(run(problem, needs), run_op(problem, needs), case)
    assert answers == [True]


@pytest.mark.parametrize("needs", [("x",), ("x", "memory"), ("x", "input_memory"), ("x", "weight")])
@pytest.mark.parametrize("case", FOLDED + OUTSIDE, ids=str)
def test_any_gradients_of_a_whole_batch_equal_the_op(case, needs, answers):
    problem = draw(case)
    assert_same(run(problem, needs), run_op(problem, needs), case)
    assert answers == [True]


@pytest.mark.parametrize("needs", [(), ("x",), None])
@pytest.mark.parametrize("case", FOLDED + OUTSIDE, ids=str)
def test_a_whole_batch_is_within_bound(case, needs):
    assert_within_bound([draw(case, seed) for seed in range(2)], partial(run_any, needs=needs), needs)


def run_any(problem, needs):
    if needs != ():
        return run(problem, needs)
    with torch.no_grad():
        return {"y": call(problem)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("granularity", ["unit", "input", "unit+input"])
@pytest.mark.parametrize("layout", ["contiguous", "weights channels_last"])
def test_gates_in_a_weight_are_rounded_once(layout, granularity, dtype):
    options = {"gate": "identity", "granularity": granularity, "dtype": dtype, "bias": False, "layout": layout}
    p = draw(conv((1, 24, 5, 7, 32, 3), "whole batch", **options))
    # Each image is one input of one tap.
    x = torch.eye(24 * 9).view(24 * 9, 24, 3, 3).to(p.x)
    c = p.index.item()
    expected = p.weight.float()
    if p.memory is not None:
        expected = expected * p.memory[c].view(-1, 1, 1, 1)
    if p.input_memory is not None:
        expected = expected * p.input_memory[c].view(-1, 1, 1)
    with torch.no_grad():
        y = call(p.replace(x=x))
    assert torch.equal(y.flatten(1), expected.to(dtype).flatten(1).t())


@pytest.mark.parametrize(
    ("case", "launches"),
    [
        (linear((6, 9, 33, 31), "whole batch", bias=False), 1),
        (linear((6, 9, 33, 31), "whole batch"), 2),
        (linear((6, 9, 33, 31), "whole batch", gate_bias=False), 1),
        (conv(CONV, "whole batch", bias=False, options=PADDED, **LAST), 1),
        (conv(CONV, "whole batch", granularity="input", options=(*PADDED, ("groups", 4))), 1),
        *((case, 1 if case.granularity == "unit" else 2) for case in OUTSIDE),
    ],
    ids=str,
)
def test_launches_of_a_whole_batch(case, launches):
    p = draw(case)
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call(p)
    ran = {event.key: event.count for event in profile.key_averages()}
    assert ran["memmod_cuda::modulate"] == launches
    assert ran.keys().isdisjoint({"aten::mul", "aten::ones", "aten::to"})


# With a bias inside of the gates, and outside: lines, rows of pixels, products of each pixel, groups.
BIASED = [
    conv(CONV, "sets", options=PADDED),
    conv(CONV, "sets", gate="identity", options=PADDED, **LAST),
    conv(CONV, "mixed", dtype=torch.float16, options=PADDED, **LAST),
    conv(CONV, "whole batch", options=PADDED),
    conv(CONV, "whole batch", options=PADDED, **LAST),
    conv((6, 8, 7, 5, 12, 1), "whole batch", **LAST),
    conv((6, 8, 7, 5, 8, 3), options=(("groups", 8), *PADDED), **LAST),
    conv(CONV, "sets", gate_bias=False, options=PADDED, **LAST),
    conv(CONV, "whole batch", gate_bias=False, options=PADDED),
]


def passes(run_it):
    """(how often the tail ran, which biases the library's convolutions got, what added to a tensor)."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        run_it()
    events = profile.events()
    biases = [event.input_shapes[2] for event in events if event.name == "aten::conv2d"]
    added = [event.name for event in events if event.name in ("aten::add", "aten::add_")]
    return sum(event.name == "memmod_cuda::modulate" for event in events), biases, added


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("case", BIASED, ids=str)
def test_a_bias_of_a_convolution_is_no_pass_of_its_own(case, activation, answers):
    p = draw(case).replace(keep_gated=False)
    with torch.no_grad():
        assert passes(lambda: call(p, activation)) == (1, [[]], [])
        assert answers == [True]
        if activation is None:
            assert passes(lambda: getattr(torch.ops.memmod, p.op).default(*p.args)) == (1, [[]], [])


def test_a_bias_that_the_tail_does_not_add(answers):
    """Where what is kept for the backward has it but not the gates, or the convolution has no gates behind it."""
    kept, inputs = draw(conv(CONV, "sets", gate="identity", options=PADDED)), draw(conv(CONV, granularity="input"))
    learns = kept.replace(memory=kept.memory.clone().requires_grad_())
    assert passes(lambda: call(learns)) == (1, [[12]], [])
    assert passes(lambda: call(inputs)) == (1, [[12]], [])
    assert answers == [True, True]


def test_a_gated_product_that_is_kept_has_the_bias(answers):
    p = draw(conv(CONV, "sets", keep_gated=True, options=PADDED, **LAST))
    assert passes(lambda: call(p.replace(memory=p.memory.clone().requires_grad_()))) == (1, [[]], [])
    assert answers == [True]


@pytest.mark.parametrize("needs", [(), ("x",), ("x", "bias", "memory"), None])
@pytest.mark.parametrize("case", [*BIASED, conv(CONV, "sets", keep_gated=True, options=PADDED)], ids=str)
def test_a_bias_in_the_tail_is_within_bound(case, needs):
    assert_within_bound([draw(case, seed) for seed in range(2)], partial(run_any, needs=needs), needs)


@pytest.mark.parametrize("case", [conv(CONV, options=PADDED), linear((6, 9, 33, 31), gate_bias=False)], ids=str)
def test_a_bias_of_another_length_is_refused(case, answers):
    """The tail would read past its end."""
    p = draw(case)
    with pytest.raises(BackendError, match="needs a bias of .* numbers, not of shape \\(5,\\)"):
        call(p.replace(bias=p.bias[:5]))
    assert answers == [False]


LAYERS = [case for case in CASES if case.op != "modulate_output"]
# Many rows, lines, and rows of pixels, with a bias inside of the gate.
RELU = [
    linear((6, 9, 33, 31)),
    conv(CONV, "sets", options=PADDED),
    conv(CONV, layout="channels_last", dy_layout="channels_last", options=PADDED),
]


@pytest.mark.parametrize("needs", [None, ("memory",), ("x",), ("x", "memory"), ("weight", "bias")])
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_a_relu_inside_equals_one_behind(case, needs, answers, poisoned):
    problem = draw(case)
    if needs is not None and problem.memory is None:
        needs = (*needs, "input_memory")
    got = run(problem, needs, partial(call, activation="relu"))
    whole_batch = case.pattern == "whole batch" and problem.memory is not None
    if whole_batch:
        # For which the op would have its gates in the weight.
        problem = problem.replace(index=problem.index.expand(problem.x.shape[0]))
    expected = run(problem, needs, relu_behind_the_op)
    if whole_batch:
        # Sums by sample come first; where the gated product is kept, the ReLU is behind it and dx by the folded weight.
        kept = {"dx"} if case.gate_bias is False and "dmemory" in got else set()
        for name in ({"dbias", "dmemory", "dinput_memory"} | kept) & got.keys():
            torch.testing.assert_close(got.pop(name), expected.pop(name))
    assert_same(got, expected, case)
    assert answers == [True]
    assert (got["y"] == 0).any() and (got["y"] > 0).any()


@pytest.mark.parametrize("case", [linear((6, 33, 31)), *RELU], ids=str)
def test_a_relu_without_gradients(case, answers):
    problem = draw(case)
    with torch.no_grad():
        assert_same({"y": call(problem, "relu")}, {"y": relu_behind_the_op(problem)}, case)
    assert answers == [True]


@pytest.mark.parametrize("case", RELU, ids=str)
def test_a_relu_inside_is_no_pass_of_its_own(case):
    p = draw(case)
    kept = []
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile,
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
    ):
        y = call(p.replace(memory=p.memory.clone().requires_grad_(), x=p.x.clone().requires_grad_()), "relu")
        y.backward(p.dy)
    ran = {event.key for event in profile.key_averages()}
    assert "memmod_cuda::modulate" in ran
    assert ran.isdisjoint({"aten::relu", "aten::relu_", "aten::clamp_min", "aten::threshold_backward"})
    assert [t.data_ptr() for t in kept if t.shape == y.shape] == [y.data_ptr()]


@pytest.mark.parametrize("case", [linear((6, 33, 31)), *RELU], ids=str)
def test_what_a_relu_stops_is_not_read(case):
    """inf, for which 0 times a gradient would be NaN."""
    p = draw(case)
    y = call(p, "relu")
    stopped = p.replace(dy=torch.where(y > 0, p.dy, torch.inf))
    assert_same(
        run(stopped, forward=partial(call, activation="relu")), run(p, forward=partial(call, activation="relu")), case
    )


@pytest.mark.parametrize("case", RELU, ids=str)
def test_a_gradient_past_a_relu_that_is_recorded(case):
    p = draw(case)
    memory, x = p.memory.clone().requires_grad_(), p.x.clone().requires_grad_()
    y = call(p.replace(memory=memory, x=x), "relu")
    once = torch.autograd.grad(y, (x, memory), p.dy, retain_graph=True)
    recorded = torch.autograd.grad(y, (x, memory), p.dy, create_graph=True)
    assert all(r.requires_grad for r in recorded)
    names = ("dx", "dmemory")
    assert_same(
        dict(zip(names, (r.detach() for r in recorded), strict=True)), dict(zip(names, once, strict=True)), case
    )


def test_few_rows_take_their_kernel_and_a_forced_library_does_not(answers):
    problem = draw(Case("modulated_linear", (4, 24, 32)))
    with torch.no_grad():
        call(problem)
        gpu_policy.force("unfused")
        y = call(problem)
    assert answers == [True, False]
    torch.testing.assert_close(y, run_op(problem)["y"])


@pytest.mark.parametrize("gate", ["sigmoid", "identity"])
def test_differentiating_a_gradient_is_refused(gate):
    p = draw(Case("modulated_linear", (6, 5, 33, 31), gate=gate, keep_gated=True))
    memory, x = p.memory.clone().requires_grad_(), p.x.clone().requires_grad_()
    dx, _ = torch.autograd.grad(call(p.replace(memory=memory, x=x)), (x, memory), p.dy, create_graph=True)
    with pytest.raises(RuntimeError, match="has no second-order gradients"):
        dx.sum().backward()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, w, m, i: (x[0], w, m, i),
        lambda x, w, m, i: (x, w, m[:, 1:], i),
        lambda x, w, m, i: (x, w, m, i[:, None, None]),
        lambda x, w, m, i: (x, w, m, i[:3]),
        lambda x, w, m, i: (x, w, m.cpu().half().to(m.device), i),
    ],
)
def test_what_is_wrong_is_said(wrong):
    p = draw(Case("modulated_linear", (4, 24, 32)))
    from memmod.errors import SelectionError

    x, weight, memory, index = wrong(p.x, p.weight, p.memory, p.index)
    with pytest.raises(SelectionError):
        functional.modulated_linear(x, weight, None, memory, index)
