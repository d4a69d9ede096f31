"""The product with gates in its epilogue (csrc/cuda/linear_fused.cu), on a GPU that has its instructions or, under the
host shim (`pytest -p tests.cuda.plugin`), on the CPU: within the rounding of exact arithmetic, whatever is left over of
tiles, and by the op and eager calls alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from memmod import functional
from memmod.ops import dispatch
from memmod.ops.backends import gpu_policy
from memmod.ops.backends.cuda import policy
from memmod.ops.backends.cuda import register as cuda_kernels
from memmod.ops.backends.cuda.primitives import gated_product
from memmod.ops.calls import LinearCall

dispatch.load()
DEVICE = torch.device(cuda_kernels.device_type())
HOST = DEVICE.type == "cpu"
HAS = HOST or (dispatch.availability()["cuda"] is None and policy.has_linear_fused(torch.device("cuda", 0)))
pytestmark = [
    *([] if HOST else [pytest.mark.gpu]),
    pytest.mark.skipif(not HAS, reason="no device of compute capability 9.0"),
]
on_gpu = pytest.mark.skipif(HOST, reason="needs a GPU")

# Samples, rows of each, inputs, units: whole tiles; rows, inputs and units that leave some over; tiles with rows of
# two, three and four samples; more tiles than a GPU has multiprocessors; one step, less than a step.
SHAPES = [
    (4, 128, 256, 512),
    (4, 197, 192, 576),
    (7, 64, 72, 264),
    (9, 49, 200, 96),
    (11, 43, 64, 8),
    *([] if HOST else [(96, 197, 384, 768), (2, 1000, 8, 4104)]),
]
DTYPES = (torch.bfloat16, torch.float16)
CLASSES = 10


@pytest.fixture(autouse=True)
def cuda_alone():
    before = dispatch.get_backend()
    path = gpu_policy.forced()
    dispatch.set_backend("cuda")
    # The host shim's tests force it.
    gpu_policy.force(None)
    yield
    gpu_policy.force(path)
    dispatch.set_backend(before)


@pytest.fixture
def served(monkeypatch):
    """How often the kernel was asked for from Python."""
    calls = []
    from memmod.ops.backends.cuda import primitives

    product = primitives.gated_product
    monkeypatch.setattr(primitives, "gated_product", lambda *args: (calls.append(1), product(*args))[1])
    return calls


class Problem:
    def __init__(self, samples: int, rows: int, inputs: int, units: int, dtype: torch.dtype, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g)

        self.x = draw(samples, rows, inputs).to(DEVICE, dtype)
        self.weight = (draw(units, inputs) / inputs**0.5).to(DEVICE, dtype)
        self.bias: Tensor | None = draw(units).to(DEVICE, dtype)
        self.memory = draw(CLASSES, units).to(DEVICE)
        self.index = torch.randint(-1, CLASSES, (samples,), generator=g).to(DEVICE)

    def run(self, **options: Any) -> Tensor:
        return functional.modulated_linear(self.x, self.weight, self.bias, self.memory, self.index, **options)

    def gates(self, gate: str = "sigmoid") -> Tensor:
        """``[B, O]`` in fp64."""
        index = self.index.view(len(self.index), -1)
        alpha = self.memory.double()[index.clamp(min=0)]
        s = {"sigmoid": alpha.sigmoid(), "identity": alpha, "hard": (alpha > 0).double()}[gate]
        first = torch.tensor([[c not in row[:i] for i, c in enumerate(row)] for row in index.tolist()]).to(DEVICE)
        return torch.where(((index >= 0) & first)[:, :, None], s, 1.0).prod(1)

    def expected(self, gate: str = "sigmoid", gate_bias: bool = True, relu: bool = False) -> tuple[Tensor, Tensor]:
        """The exact result, and the sum of absolute values behind each of its numbers."""
        x, weight = self.x.double(), self.weight.double()
        bias = torch.zeros(len(weight)).to(DEVICE).double() if self.bias is None else self.bias.double()
        s = self.gates(gate).repeat_interleave(len(x) // len(self.index), 0)[:, None]
        z, size = x @ weight.T, x.abs() @ weight.abs().T
        y = (z + bias) * s if gate_bias else z * s + bias
        size = (size + bias.abs()) * s.abs().clamp(min=0 if gate_bias else 1)
        return (y.relu() if relu else y), size

    def check(self, y: Tensor, **options: Any) -> None:
        exact, size = self.expected(**options)
        # Rounding to 16 bits, and sums in fp32 of as many terms.
        bound = (
            1.01 * torch.finfo(y.dtype).eps / 2 * exact.abs()
            + 2.0**-22 * (self.x.shape[-1] ** 0.5 + 8) * size
            + 2.0**-24
        )
        error = (y.double() - exact).abs()
        assert (error <= bound).all(), f"{(error / bound).max():.2f} of the bound"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_size(shape, dtype):
    problem = Problem(*shape, dtype)
    with torch.no_grad():
        y = problem.run()
    assert y.dtype is dtype and y.is_contiguous()
    problem.check(y)


@pytest.mark.parametrize("gate", ["sigmoid", "identity", "hard"])
@pytest.mark.parametrize("gate_bias", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_gates_and_biases(gate, gate_bias, bias):
    problem = Problem(5, 100, 64, 320, torch.bfloat16)
    if not bias:
        problem.bias = None
    with torch.no_grad():
        problem.check(problem.run(gate=gate, gate_bias=gate_bias), gate=gate, gate_bias=gate_bias)


@pytest.mark.parametrize("index", [[[3, 5], [-1, -1], [2, 2], [-1, 7]], [3], [[1, 2]], [-1]], ids=str)
def test_sets_and_one_selection_for_all(index):
    problem = Problem(4, 131, 128, 264, torch.float16)
    problem.index = torch.tensor(index, device=DEVICE)
    with torch.no_grad():
        problem.check(problem.run())


@on_gpu
def test_a_class_out_of_range_gives_nan_in_its_rows_alone():
    problem = Problem(4, 100, 64, 64, torch.bfloat16)
    problem.index = torch.tensor([1, CLASSES, -1, -2], device=DEVICE)
    with torch.no_grad():
        y = problem.run()
    assert y[[1, 3]].isnan().all()
    assert not y[[0, 2]].isnan().any()


def test_nan_and_infinity_of_the_input_reach_their_rows_alone():
    problem = Problem(4, 100, 64, 64, torch.bfloat16)
    problem.x[1, 7, 3], problem.x[2, 50, 9] = float("nan"), float("inf")
    with torch.no_grad():
        bad = ~problem.run().isfinite().all(-1)
    assert bad.nonzero().tolist() == [[1, 7], [2, 50]]


def test_the_op_gives_the_same_bits_as_eager_calls(served):
    problem = Problem(9, 49, 200, 96, torch.bfloat16)
    with torch.no_grad():
        eager = problem.run()
        assert HOST or not served
        args = (problem.x, problem.weight, problem.bias, problem.memory, None, problem.index, "sigmoid", True, False)
        by_op, _ = torch.ops.memmod.modulated_linear(*args)
    assert served
    assert torch.equal(eager, by_op)


def test_another_path_that_is_forced_is_taken(served):
    problem = Problem(9, 49, 200, 96, torch.bfloat16)
    with torch.no_grad():
        own = problem.run()
        gpu_policy.force("unfused")
        try:
            library = problem.run()
            problem.check(own)
        finally:
            gpu_policy.force(None)
    assert len(served) == HOST
    assert not torch.equal(own, library)
    torch.testing.assert_close(own, library, rtol=2e-2, atol=2e-2)


def test_calls_repeat_their_bits():
    problem = Problem(*((4, 100, 64, 264) if HOST else (96, 197, 384, 768)), torch.bfloat16)
    with torch.no_grad():
        first = problem.run()
        assert all(torch.equal(first, problem.run()) for _ in range(3 if HOST else 20))


@pytest.mark.parametrize("columns", [128, 192, 256])
@pytest.mark.parametrize("shape", [(4, 97, 200, 328), (9, 49, 64, 200)], ids=str)
def test_tiles_of_every_width(shape, columns):
    problem = Problem(*shape, torch.float16)
    args = (problem.x, problem.weight, problem.bias, problem.memory, None, problem.index, "sigmoid", True, False)
    y = torch.full((*shape[:2], shape[3]), float("nan"), dtype=problem.x.dtype, device=DEVICE)
    gated_product(problem.x, LinearCall(*args), y, columns)
    problem.check(y)


def shifted(t: Tensor, by: int) -> Tensor:
    """The same numbers, `by` numbers behind a multiple of 16 bytes."""
    room = torch.empty(t.numel() + by, dtype=t.dtype, device=t.device)
    return room[by:].view_as(t).copy_(t)


def test_operands_that_start_anywhere():
    problem = Problem(4, 100, 64, 64, torch.bfloat16)
    with torch.no_grad():
        expected, given = problem.run(), problem.x
        for name, by in (("x", 1), ("weight", 3), ("bias", 1)):
            setattr(problem, name, shifted(getattr(problem, name), by))
            assert getattr(problem, name).data_ptr() % 16 != 0
            assert torch.equal(expected, problem.run()), name
        problem.x = given.transpose(0, 1).contiguous().transpose(0, 1)
        assert torch.equal(expected, problem.run())


def test_what_the_kernel_does_not_take_is_refused():
    """By the op itself: its callers ask `policy` first."""
    problem = Problem(4, 100, 64, 64, torch.bfloat16)
    y = torch.empty(4, 100, 64, dtype=torch.bfloat16, device=DEVICE)

    def run(x: Tensor, columns: int = 0, index: Tensor = problem.index) -> None:
        options = (problem.weight, None, y, problem.memory, index, 0, True, False, columns)
        torch.ops.memmod_cuda.linear_fused.default(x, *options)

    with pytest.raises(RuntimeError, match="16 bits"):
        run(problem.x.float())
    with pytest.raises(RuntimeError, match="as many rows of x as of y"):
        run(problem.x[1:])
    with pytest.raises(RuntimeError, match="tiles of 128, 192 and 256 columns, not 64"):
        run(problem.x, columns=64)
    with pytest.raises(RuntimeError, match="43 rows of a sample or more, not 10"):
        run(problem.x, index=problem.index.repeat(10))
    with pytest.raises(RuntimeError, match="multiples of 16 bytes"):
        run(shifted(problem.x, 1))


@pytest.mark.parametrize("gate", ["sigmoid", "identity"])
def test_gradients(gate):
    """Against fp64, on the CPU."""
    problem = Problem(6, 70, 64, 136, torch.bfloat16)
    x, memory = problem.x.detach().requires_grad_(), problem.memory.detach().requires_grad_()
    dy = torch.randn(6, 70, 136, device=DEVICE).bfloat16()
    y = functional.modulated_linear(x, problem.weight, problem.bias, memory, problem.index, gate=gate)
    got = torch.autograd.grad(y, (x, memory), dy)
    exact_x, exact_memory = (t.detach().double().cpu().requires_grad_() for t in (x, memory))
    weight, bias = problem.weight.double().cpu(), problem.bias.double().cpu()
    dispatch.set_backend("reference")
    exact = functional.modulated_linear(exact_x, weight, bias, exact_memory, problem.index.cpu(), gate=gate)
    expected = torch.autograd.grad(exact, (exact_x, exact_memory), dy.double().cpu())
    for one, other in zip(got, expected, strict=True):
        assert ((one.double().cpu() - other).norm() / other.norm()) < 1e-2


def test_a_relu_behind_it():
    problem = Problem(4, 100, 64, 264, torch.bfloat16)
    with torch.no_grad():
        y = problem.run(activation="relu")
    problem.check(y, relu=True)
    assert (y == 0).any()


@pytest.mark.parametrize("side", [7, 14])
def test_pointwise_convolutions_in_channels_last(side, served):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(12, 64, side, side, generator=g).bfloat16().to(DEVICE).contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(136, 64, 1, 1, generator=g) / 8).bfloat16().to(DEVICE)
    bias, memory = torch.randn(136, generator=g).bfloat16().to(DEVICE), torch.randn(10, 136, generator=g).to(DEVICE)
    index = torch.randint(-1, 10, (12,), generator=g).to(DEVICE)
    with torch.no_grad():
        y = functional.modulated_conv2d(x, weight, bias, memory, index)
        options = ([1, 1], [0, 0], [1, 1], 1)
        by_op, _ = torch.ops.memmod.modulated_conv2d(
            x, weight, bias, memory, None, index, "sigmoid", True, False, *options
        )
        rows = functional.modulated_linear(x.permute(0, 2, 3, 1).flatten(1, 2), weight.flatten(1), bias, memory, index)
    assert served
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, by_op)
    assert torch.equal(y.permute(0, 2, 3, 1).flatten(1, 2), rows)
    exact = F.conv2d(x.double(), weight.double(), bias.double()) * torch.where(
        index >= 0, memory.double().sigmoid()[index.clamp(min=0)].T, 1.0
    ).T.reshape(12, 136, 1, 1)
    torch.testing.assert_close(y.double(), exact, rtol=1e-2, atol=1e-2)


@on_gpu
def test_graphs_and_streams():
    problem = Problem(8, 197, 192, 384, torch.bfloat16)
    stream = torch.cuda.Stream()
    with torch.no_grad():
        expected = problem.run()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            on_stream = problem.run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = problem.run()
        problem.x.mul_(2)
        problem.bias.mul_(2)
        graph.replay()
    assert torch.equal(on_stream, expected)
    assert torch.equal(y, 2 * expected)


@on_gpu
def test_compiled():
    problem = Problem(8, 197, 192, 384, torch.bfloat16)
    with torch.no_grad():
        compiled = torch.compile(
            lambda x, index: functional.modulated_linear(x, problem.weight, problem.bias, problem.memory, index),
            fullgraph=True,
        )
        assert torch.equal(compiled(problem.x, problem.index), problem.run())
