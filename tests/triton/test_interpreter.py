"""The Triton kernels' host functions under Triton's interpreter: what calls through the ops do not reach on the CPU."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton interprets kernels only in a process started with TRITON_INTERPRET=1", allow_module_level=True)

from benchmarks import retune
from benchmarks.tuning import PathPoint, TilePoint
from memmod.kernels.configs import INTERPRETED, MatmulConfig, class_sums_config, line_config, programs, row_config
from memmod.kernels.gates import gate_table
from memmod.kernels.linear import matmul
from memmod.kernels.sums import class_sums
from memmod.ops import dispatch
from memmod.ops.backends import gpu_policy, reference
from memmod.ops.backends.gpu.output import memory_gradient
from memmod.ops.backends.triton.primitives import TRITON
from memmod.ops.calls import ConvCall, LinearCall, OutputCall, OutputGradCall
from tests.ops.bounds import naive_gates

pytestmark = pytest.mark.interpreter

EPS = torch.finfo(torch.float32).eps
# Fewer classes than samples: a table by class; more: one by sample.
CLASSES = (3, 40)


@pytest.fixture(params=["fused", "unfused"])
def path(request):
    gpu_policy.force(request.param)
    yield request.param
    gpu_policy.force(None)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_sums(got: Tensor, plain: Tensor, exact: Tensor, magnitude: Tensor) -> None:
    """The error is at most 2x plain PyTorch's + eps x the largest sum of absolute values."""
    bound = 2 * (plain.double() - exact).abs().max() + EPS * magnitude.max()
    error = (got.double() - exact).abs().max()
    assert error <= bound, f"error {error:.3e}, bound {bound:.3e}"


def gated_call(op: str, index: Tensor, classes: int, inputs: bool) -> Tensor:
    """y of one op with four samples; a layer has gates on its inputs alone if `inputs`, else on its units alone."""
    run = dispatch.kernel(op, "triton").run
    if op == "modulate_output":
        return run(OutputCall(randn(4, 6, 5), randn(classes, 6, seed=1), index, 1, "sigmoid", False))[0]
    memories = (None, randn(classes, 5, seed=1)) if inputs else (randn(classes, 6, seed=1), None)
    options = ("sigmoid", True, False)
    if op == "modulated_linear":
        tensors = (randn(4, 7, 5), randn(6, 5, seed=2), randn(6, seed=3), *memories, index)
        return run(LinearCall(*tensors, *options))[0]
    x = randn(4, 5, 6, 6).contiguous(memory_format=torch.channels_last)
    weight = randn(6, 5, 3, 3, seed=2)
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    return run(ConvCall(x, weight, randn(6, seed=3), *memories, index, *options, *geometry))[0]


@pytest.mark.parametrize("wrong", [-2, 40, 2**40])
@pytest.mark.parametrize("sets", [False, True])
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("modulate_output", False),
        ("modulated_linear", False),
        ("modulated_linear", True),
        ("modulated_conv2d", False),
        ("modulated_conv2d", True),
    ],
)
def test_a_class_out_of_range_gives_nan_in_its_rows_only(path, op, inputs, classes, sets, wrong):
    index = torch.tensor([[0, 1], [1, wrong], [-1, -1], [2, 0]]) if sets else torch.tensor([0, wrong, -1, 2])
    right = torch.where((index < -1) | (index >= classes), -1, index)
    y, expected = (gated_call(op, i, classes, inputs) for i in (index, right))
    assert not expected.isnan().any()
    assert y[1].isnan().all()
    others = [0, 2, 3]
    assert torch.equal(y[others], expected[others])


@pytest.mark.parametrize("gate", ["sigmoid", "identity"])
@pytest.mark.parametrize("shape", [(4, 150, 20), (3, 20, 700)], ids=["rows", "lines"])
def test_memory_gradient_of_samples_split_in_chunks(shape, gate):
    samples, dim = shape[0], 2 if shape[1] == 150 else 1
    if dim == 2:
        config = row_config(shape[1], shape[2], torch.float32, INTERPRETED, True)
        length = shape[1]
    else:
        config = line_config(shape[2], INTERPRETED)
        length = shape[2]
    assert length > 2 * config.chunk  # three chunks, the last one not full
    dy, y, memory = randn(*shape), randn(*shape, seed=1), randn(5, 20, seed=2)
    index = torch.tensor([3, 0, -1, 3][:samples])
    gates = TRITON.gates(memory, index, gate)
    dz, dmemory = memory_gradient(TRITON, dy, y, gates, dim, with_dz=True)

    def gradient(dtype: torch.dtype, sign: bool = True) -> Tensor:
        terms = dy.to(dtype) * y.to(dtype)
        parts = (terms if sign else terms.abs()).sum(3 - dim)
        total = torch.zeros(5, 20, dtype=dtype).index_add(0, index[index >= 0], parts[index >= 0])
        return total * torch.sigmoid(-memory.to(dtype)) if gate == "sigmoid" else total

    assert_sums(dmemory, gradient(torch.float32), gradient(torch.float64), gradient(torch.float64, sign=False))
    assert torch.equal(dmemory[[1, 2, 4]], torch.zeros(3, 20))
    # More classes than samples: row b of the table is sample b's.
    table = gates.gate_table
    assert table.rows is None
    assert torch.equal(dz, dy * table.table.unsqueeze(3 - dim))


def test_memory_gradient_is_the_same_without_the_gated_gradient():
    dy, y, memory, index = (
        randn(4, 150, 20),
        randn(4, 150, 20, seed=1),
        randn(5, 20, seed=2),
        torch.tensor([3, 0, -1, 3]),
    )
    gates = TRITON.gates(memory, index, "sigmoid")
    gated, alone = (memory_gradient(TRITON, dy, y, gates, 2, with_dz=with_dz) for with_dz in (True, False))
    assert alone[0] is None
    assert torch.equal(gated[1], alone[1])


@pytest.mark.parametrize("terms", [1, 3])
def test_class_sums_of_several_splits(terms):
    samples, classes, width = 75, 6, 40
    config = class_sums_config(classes, width, INTERPRETED)
    assert samples > 2 * config.split
    index = torch.randint(-1, classes - 1, (samples, 3), generator=torch.Generator().manual_seed(0))
    a, memory = randn(samples, terms, width), randn(classes, width, seed=2)
    got = class_sums(a, None, memory, index, "sigmoid")

    def sums(dtype: torch.dtype, sign: bool = True) -> Tensor:
        parts = (a if sign else a.abs()).to(dtype).sum(1)
        selects = (index[:, :, None] == torch.arange(classes)).any(1).to(dtype)
        return selects.T @ parts * torch.sigmoid(-memory.to(dtype))

    assert_sums(got, sums(torch.float32), sums(torch.float64), sums(torch.float64, sign=False))
    assert torch.equal(got[-1], torch.zeros(width))


def test_identity_gate_on_sets_of_several_splits():
    samples, classes, width = 75, 6, 40
    assert samples > 2 * class_sums_config(classes, width, INTERPRETED).split
    index = torch.randint(-1, classes, (samples, 3), generator=torch.Generator().manual_seed(0))
    assert any(len(set(row)) < 3 for row in index.tolist())  # a class twice in a set
    x, dy, memory = randn(samples, width), randn(samples, width, seed=1), randn(classes, width, seed=2)
    memory[2] = 0.0  # a closed gate: nothing may be divided by it
    backward = dispatch.kernel("modulate_output_backward", "triton").run
    got = backward(OutputGradCall(dy, x, memory, index, 1, "identity", [True, True]))

    def gradients(dtype: torch.dtype, sign: bool = True) -> tuple[Tensor, ...]:
        leaves = [(t if sign else t.abs()).to(dtype).requires_grad_() for t in (x, memory)]
        y = reference.modulate_output(OutputCall(*leaves, index, 1, "identity", False))[0]
        return torch.autograd.grad(y, leaves, (dy if sign else dy.abs()).to(dtype))

    plain, exact, magnitude = gradients(torch.float32), gradients(torch.float64), gradients(torch.float64, sign=False)
    for results in zip(got, plain, exact, magnitude, strict=True):
        assert_sums(*results)


@pytest.mark.parametrize("b_columns", [False, True])
def test_matmul_of_more_tiles_than_programs(b_columns):
    config = MatmulConfig(16, 16, 16, 2, 4, 1)
    rows, inner, columns = 5 * 20, 37, 70
    tiles = -(-rows // config.block_m) * -(-columns // config.block_n)
    assert tiles > 4 * programs(torch.device("cpu"), config)
    a, b, bias = randn(rows, inner), randn(inner, columns, seed=1), randn(columns, seed=2)
    memory, index = randn(4, columns, seed=3), torch.tensor([1, -1, 3, 0, 1])
    y = torch.full((rows, columns), float("nan"))
    stored = b.T.contiguous() if b_columns else b
    matmul(a, stored, y, b_columns=b_columns, bias=bias, out_gates=gate_table(memory, index, "sigmoid"), config=config)

    def product(dtype: torch.dtype, sign: bool = True) -> Tensor:
        factors = [(t if sign else t.abs()).to(dtype) for t in (a, b, bias)]
        return (factors[0] @ factors[1] + factors[2]) * naive_gates(memory.to(dtype), index, "sigmoid", rows)

    assert_sums(y, product(torch.float32), product(torch.float64), product(torch.float64, sign=False))


@pytest.mark.parametrize("gate", ["sigmoid", "identity", "hard"])
def test_tables_by_class_and_by_sample_agree_bit_for_bit(gate):
    memory = randn(5, 300)
    memory[0, :2] = torch.tensor([-1000.0, 1000.0])
    index = torch.tensor([4, 0, -1, 2, 2, 0, 3])
    by_class, by_sample = gate_table(memory, index, gate), gate_table(memory, index[:, None], gate)
    assert by_class.table.shape == (5, 300) and by_class.rows is not None
    assert by_sample.table.shape == (7, 300) and by_sample.rows is None
    gathered = torch.cat([by_class.table, torch.ones(1, 300)])[by_class.rows]
    assert torch.equal(gathered, by_sample.table)
    assert not torch.equal(gathered[0], gathered[1])


TILES = MatmulConfig(32, 32, 16, 2, 4, 1)


@pytest.mark.parametrize("path", ["fused", "unfused"])
@pytest.mark.parametrize(
    "point",
    [
        PathPoint("linear", 20, 2 * 196, 20, 24, dtype="fp32"),
        PathPoint("conv", 9 * 20, 2 * 49, 20, 24, 7, kernel=3, dtype="fp32"),
        PathPoint("conv", 20, 2 * 49, 20, 24, 7, dtype="fp32"),
    ],
    ids=["linear", "3x3", "1x1"],
)
def test_paths_are_retuned_on_right_results(point, path):
    dispatch.set_backend("triton")
    gpu_policy.force(path)
    try:
        got = point._replace(path=path).prepare("cpu")()
        retune.check(point._replace(path=path), got, "cpu")
        got[0][(-1,) * got[0].dim()] += 1.0
        with pytest.raises(retune.WrongResult):
            retune.check(point._replace(path=path), got, "cpu")
    finally:
        gpu_policy.force(None)
        dispatch.set_backend(None)


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("rows", [2 * 196, 16])
def test_tiles_are_retuned_on_right_results(rows, forward):
    point = TilePoint("bucket", rows, 40, 24, forward, "fp32", TILES)
    got = point.prepare("cpu")()
    retune.check(point, got, "cpu")
    got[0].view(-1)[-1] = float("nan")
    with pytest.raises(retune.WrongResult):
        retune.check(point, got, "cpu")
