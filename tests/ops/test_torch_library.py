"""The ops under torch.library's own checks, torch.compile and torch.export."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from memmod import functional
from memmod.errors import SelectionError
from tests.ops.problems import Case, Problem

LINEAR = Case("modulated_linear", (6, 3, 9, 7), "sets", granularity="unit+input", gate_bias=False)
CONV = Case("modulated_conv2d", (6, 4, 5, 6, 8, 3), "mixed", layout="channels_last", options=(("padding", (1, 1)),))
OUTPUT = Case("modulate_output", (6, 5, 3, 4), "mixed", layout="transposed")
CASES = [LINEAR, CONV, OUTPUT]

each_op = pytest.mark.parametrize("case", CASES, ids=lambda c: c.op)
DEVICES = ["cpu"] + [pytest.param("cuda", marks=pytest.mark.gpu)] * torch.cuda.is_available()
each_device = pytest.mark.parametrize("device", DEVICES)


def learnable(problem: Problem) -> Problem:
    names = [n for n in problem.learnable if getattr(problem, n) is not None]
    return problem.replace(**{n: getattr(problem, n).detach().requires_grad_() for n in names})


def backward_args(problem: Problem, needs: list[bool]) -> tuple:
    y, saved = getattr(torch.ops.memmod, problem.op).default(*problem.args)
    saved = saved if saved.numel() else y
    if problem.op == "modulate_output":
        return problem.dy, saved, problem.memory, problem.index, problem.dim, problem.gate, needs
    args = (problem.dy, list(problem.x.shape), problem.x, problem.weight, problem.memory, problem.input_memory)
    return *args, problem.index, saved, problem.gate, problem.gate_bias, *problem.args[9:], needs


@each_device
@each_op
def test_opcheck_forward(case, device):
    problem = case.draw().to(device)
    op = getattr(torch.ops.memmod, case.op).default
    opcheck(op, problem.args)
    opcheck(op, learnable(problem).args)


@each_device
@each_op
def test_opcheck_backward(case, device):
    problem = case.draw().to(device)
    op = getattr(torch.ops.memmod, f"{case.op}_backward").default
    present = [getattr(problem, name) is not None for name in problem.learnable]
    opcheck(op, backward_args(problem, present))
    opcheck(op, backward_args(problem, [False] * len(present)), test_utils=("test_schema", "test_faketensor"))


LAYOUTS = ["contiguous", "channels_last", "weights channels_last", "transposed", "strided", "expanded", "one number"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("keep_gated", [False, True])
@each_device
@each_op
def test_fakes_have_the_real_shapes_and_strides(case, layout, keep_gated, device):
    if case.op == "modulated_linear" and "channels_last" in layout:
        layout = "contiguous"
    values = {f: getattr(case, f) for f in case.__dataclass_fields__}
    values |= {"layout": layout, "dy_layout": layout.removeprefix("weights "), "keep_gated": keep_gated}
    problem = Case(**values).draw().to(device)
    needs = [getattr(problem, name) is not None for name in problem.learnable]
    calls = [
        (getattr(torch.ops.memmod, case.op).default, problem.args),
        (getattr(torch.ops.memmod, f"{case.op}_backward").default, backward_args(problem, needs)),
    ]
    for op, args in calls:
        with FakeTensorMode() as mode:
            fakes = op(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args))
        for fake, real in zip(fakes, op(*args), strict=True):
            assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


class Net(nn.Module):
    """One of each op."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.conv = nn.Parameter(torch.randn(8, 3, 3, 3, generator=g), requires_grad=False)
        self.linear = nn.Parameter(torch.randn(5, 8, generator=g), requires_grad=False)
        self.bias = nn.Parameter(torch.randn(5, generator=g), requires_grad=False)
        self.memories = nn.ParameterList([nn.Parameter(torch.randn(4, n, generator=g)) for n in (8, 8, 5, 8)])

    def forward(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        first, second, third, fourth = self.memories
        x = functional.modulated_conv2d(x, self.conv, None, first, index, padding="same")
        x = functional.modulate_output(x, second, index, keep="gated").flatten(2).transpose(1, 2)
        return functional.modulated_linear(
            x, self.linear, self.bias, third, index, input_memory=fourth, gate_bias=False
        )


def gradients(net, x, index):
    for memory in net.memories:
        memory.grad = None
    x = x.clone().requires_grad_()
    y = net(x, index)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(3)))
    return [y.detach(), x.grad, *(memory.grad for memory in net.memories)]


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole_and_new_selections_never_recompile(dynamic):
    torch._dynamo.reset()
    net = Net()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    compiled.memories = net.memories
    x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    selections = [[0, 1, 2, 3], [-1, -1, -1, -1], [3, 3, 3, 3], [-1, 0, 1, 0]]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for selection in selections:
            index = torch.tensor(selection)
            for eager, got in zip(gradients(net, x, index), gradients(compiled, x, index), strict=True):
                torch.testing.assert_close(got, eager)


@pytest.mark.slow
def test_compiles_with_inductor():
    torch._dynamo.reset()
    net = Net()
    x, index = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([0, -1, 2, 1])
    compiled = torch.compile(net, fullgraph=True)
    compiled.memories = net.memories
    for eager, got in zip(gradients(net, x, index), gradients(compiled, x, index), strict=True):
        torch.testing.assert_close(got, eager)
    with torch.no_grad(), pytest.raises(SelectionError, match="class 4 was selected"):
        compiled(x, torch.tensor([0, -1, 4, 1]))


def test_compiles_inside_autocast():
    torch._dynamo.reset()
    net = Net()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x, index = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([0, -1, 2, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        eager, got = net(x, index), compiled(x, index)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, eager)


def test_exports():
    net = Net()
    x, index = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([0, -1, 2, 1])
    dim = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(net, (x, index), dynamic_shapes=({0: dim}, {0: dim}))
    torch.testing.assert_close(program.module()(x, index), net(x, index))
    other = torch.tensor([3, 3, 1, -1, 0])
    x = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(program.module()(x, other), net(x, other))
