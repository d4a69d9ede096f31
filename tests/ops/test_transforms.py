"""Forward mode and torch.func: right through the functions and modules, refused by the bare ops, never 0."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from memmod import ModulatedConv2d, ModulatedLinear, ModulatedModel, ModulatedOutput, functional, modulate
from memmod.errors import SelectionError
from memmod.surgery.random_weights import randomise
from memmod.zoo import create_model

CLASSES = 5
INDEX = {"[B]": torch.tensor([1, -1, 4]), "[B, S]": torch.tensor([[1, 3], [-1, -1], [2, 2]]), "[1]": torch.tensor([2])}


def problem(kind: str, granularity: str, gate_bias: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    options = {"granularity": granularity, "dtype": torch.float64}
    if kind == "linear":
        layer, x = ModulatedLinear(6, 4, CLASSES, gate_bias=gate_bias, **options), torch.randn(3, 2, 6)
    elif kind == "conv2d":
        layer = ModulatedConv2d(4, 6, 3, CLASSES, groups=2, padding="same", gate_bias=gate_bias, **options)
        x = torch.randn(3, 4, 5, 5)
    else:
        options = {"granularity": granularity}
        layer, x = ModulatedOutput(4, CLASSES, inner=nn.Tanh(), in_features=4, **options), torch.randn(3, 4, 5)
    layer.double()
    with torch.no_grad():
        for _, memory in layer.memories():
            memory.normal_()
    return layer, x.double()


def numeric(function: Callable[[Tensor], Tensor], at: Tensor, along: Tensor, step: float = 1e-5) -> Tensor:
    """The derivative by central differences, of functions that no transform sees."""
    with torch.no_grad():
        return (function(at + step * along) - function(at - step * along)) / (2 * step)


@pytest.mark.parametrize("index", INDEX)
@pytest.mark.parametrize("gate_bias", [True, False])
@pytest.mark.parametrize("granularity", ["unit", "input", "unit+input"])
@pytest.mark.parametrize("kind", ["linear", "conv2d", "output"])
def test_derivatives(kind: str, granularity: str, gate_bias: bool, index: str) -> None:
    layer, x = problem(kind, granularity, gate_bias)
    selection = INDEX[index]

    def of_x(x: Tensor) -> Tensor:
        return layer(x, selection)

    along = torch.randn_like(x)
    want = numeric(of_x, x, along)
    value, got = jvp(of_x, (x,), (along,))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(value, of_x(x))
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(of_x(forward_ad.make_dual(x, along)))
    torch.testing.assert_close(dual.tangent, want, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(vmap(lambda t: jvp(of_x, (x,), (t,))[1])(torch.stack([along, 2 * along]))[1], 2 * got)
    for name, memory in layer.memories():

        def of_memory(m: Tensor, name: str = name) -> Tensor:
            return functional_call(layer, {name: m}, (x, selection))

        memory = memory.detach()
        along = torch.randn_like(memory)
        want = numeric(of_memory, memory, along)
        got = jvp(of_memory, (memory,), (along,))[1]
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
        assert got.abs().max() > 1e-3
        rows = jacrev(of_memory)(memory)
        torch.testing.assert_close(rows, jacfwd(of_memory)(memory))
        torch.testing.assert_close((rows * along).sum((-1, -2)), want, rtol=1e-6, atol=1e-8)


def test_second_derivatives() -> None:
    layer, x = problem("linear", "unit", True)

    def loss(memory: Tensor) -> Tensor:
        return functional_call(layer, {"memory": memory}, (x, INDEX["[B]"])).square().sum()

    memory, along = layer.memory.detach(), torch.randn(CLASSES, 4, dtype=torch.float64)
    want = numeric(grad(loss), memory, along)
    torch.testing.assert_close((hessian(loss)(memory) * along).sum((-1, -2)), want, rtol=1e-6, atol=1e-8)


@pytest.fixture(scope="module")
def wf() -> ModulatedModel:
    wf = modulate(randomise(create_model("resnet", CLASSES, (1, 8, 8))).eval())
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.normal_()
    return wf


def memories(wf: ModulatedModel) -> dict[str, Tensor]:
    return {f"model.{name}": memory for name, memory in wf.named_memories()}


def test_gradients_per_sample(wf: ModulatedModel) -> None:
    x, index = torch.randn(3, 1, 8, 8), INDEX["[B]"]

    def loss(values: dict[str, Tensor], image: Tensor, c: Tensor) -> Tensor:
        return functional_call(wf, values, (image[None],), {"forget": c[None]}).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0, 0))(memories(wf), x, index)
    wf.zero_grad()
    wf(x, forget=index).square().sum().backward()
    for name, memory in memories(wf).items():
        torch.testing.assert_close(each[name].sum(0), memory.grad, rtol=1e-4, atol=1e-5)
        assert each[name][0, 1].any() and not each[name][1].any() and each[name][2, 4].any()


@pytest.mark.slow
def test_a_model_forward_and_compiled(wf: ModulatedModel) -> None:
    x, along, index = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8), INDEX["[B]"]
    exact = copy.deepcopy(wf).double()
    want = numeric(lambda x: exact(x, forget=index), x.double(), along.double()).float()
    compiled = torch.compile(wf, backend="aot_eager")
    compiled(x, forget=index)
    whole = torch.compile(lambda x: jvp(lambda x: wf(x, forget=index), (x,), (along,))[1], backend="aot_eager")
    for got in (
        jvp(lambda x: wf(x, forget=index), (x,), (along,))[1],
        jvp(lambda x: compiled(x, forget=index), (x,), (along,))[1],
        whole(x),
    ):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    # Compiled for derivatives, it still serves plain calls.
    torch.testing.assert_close(compiled(x, forget=index), wf(x, forget=index), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_a_class_out_of_range_is_refused(wf: ModulatedModel) -> None:
    def logits(image: Tensor, c: Tensor) -> Tensor:
        return wf(image[None], forget=c[None])

    with pytest.raises(SelectionError, match="class 5 was selected"):
        vmap(logits)(torch.randn(3, 1, 8, 8), torch.tensor([0, 5, 1]))


def test_the_hard_gate_has_no_derivative() -> None:
    layer = ModulatedLinear(6, 4, CLASSES, gate="hard")
    x, index = torch.randn(3, 6), INDEX["[B]"]
    call = {"jvp": lambda f, m: jvp(f, (m,), (torch.ones_like(m),)), "grad": lambda f, m: grad(lambda m: f(m).sum())(m)}
    for derive in call.values():
        with pytest.raises(RuntimeError, match="'hard' is a step, its memory has no derivative"):
            derive(lambda m: functional_call(layer, {"memory": m}, (x, index)), layer.memory.detach())
    got = jvp(lambda x: layer(x, index), (x,), (torch.ones_like(x),))[1]
    torch.testing.assert_close(got, layer(torch.ones_like(x), index) - layer(torch.zeros_like(x), index))


def test_autocast() -> None:
    layer, x = ModulatedLinear(6, 4, CLASSES), torch.randn(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        value, tangent = jvp(lambda x: layer(x, INDEX["[B]"]), (x,), (torch.ones_like(x),))
        plain = layer(x, INDEX["[B]"])
    assert value.dtype == tangent.dtype == torch.bfloat16
    torch.testing.assert_close(value, plain, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("kind", ["linear", "conv2d", "output"])
def test_bare_ops_refuse_tangents(kind: str) -> None:
    memory, index = torch.randn(CLASSES, 4), INDEX["[B]"]
    ops = torch.ops.memmod
    call = {
        "linear": lambda x: ops.modulated_linear(
            x[..., 0, 0], torch.randn(4, 4), None, memory, None, index, "sigmoid", True, False
        )[0],
        "conv2d": lambda x: ops.modulated_conv2d(
            x, torch.randn(4, 4, 3, 3), None, memory, None, index, "sigmoid", True, False, [1, 1], [0, 0], [1, 1], 1
        )[0],
        "output": lambda x: ops.modulate_output(x, memory, index, 1, "sigmoid", False)[0],
    }[kind]
    x = torch.randn(3, 4, 5, 5)
    with pytest.raises(RuntimeError, match="has no forward-mode derivative"):
        jvp(call, (x,), (torch.ones_like(x),))
    with pytest.raises(RuntimeError), forward_ad.dual_level():
        call(forward_ad.make_dual(x, torch.ones_like(x)))


def test_functions_agree_with_the_kernels() -> None:
    x, memory, index = torch.randn(6, 4, 5, 5), torch.randn(CLASSES, 4), INDEX["[B]"]
    want = functional.modulate_output(x, memory, index)
    torch.testing.assert_close(vmap(lambda x: functional.modulate_output(x, memory, index))(x[None])[0], want)
