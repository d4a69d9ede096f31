"""The ops on a CUDA device, by Triton and by CUDA C++: the bound, classes out of range without waiting for the device,
CUDA graphs, streams, addresses beyond 2**31 elements, torch.compile, TF32."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_variants import VARIANTS, on_variant, why_not
from memmod.ops import dispatch
from tests.ops.bounds import Results, assert_within_bound, magnitudes, run_op, run_oracle
from tests.ops.problems import FLOATS, Case, Problem
from tests.ops.test_torch_library import Net

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CASES = [
    *(Case("modulated_linear", (6, 5, 33, 31), p, granularity="unit+input") for p in ("mixed", "sets", "whole batch")),
    Case("modulated_linear", (6, 5, 33, 31), "sets", dtype=torch.bfloat16, gate_bias=False),
    Case("modulated_conv2d", (6, 8, 7, 5, 12, 3), "sets", granularity="unit+input", options=(("padding", (1, 1)),)),
    Case("modulated_conv2d", (6, 8, 7, 5, 12, 3), layout="channels_last", dy_layout="channels_last"),
    *(Case("modulate_output", (6, 31, 7, 5), pattern) for pattern in ("mixed", "sets", "whole batch")),
    Case("modulate_output", (6, 31, 7, 5), gate="identity", classes=40),
]
# One of each kernel, in a layout that it takes.
FEW = Case("modulated_linear", (6, 33, 31), granularity="unit+input")
LINEAR = Case("modulated_linear", (6, 5, 33, 31), granularity="unit+input")
CONV = Case(
    "modulated_conv2d",
    (6, 8, 7, 5, 12, 3),
    granularity="unit+input",
    layout="channels_last",
    dy_layout="channels_last",
    options=(("padding", (1, 1)),),
)
OUTPUT = Case("modulate_output", (6, 31, 7, 5))
OPS = [
    pytest.param(case, id=name)
    for name, case in {"few rows": FEW, "linear": LINEAR, "conv2d": CONV, "output": OUTPUT}.items()
]
# What a step with frozen weights differentiates.
NEEDS = ("x", "memory", "input_memory")


def on_device(problem: Problem) -> Problem:
    return problem.to("cuda")


def taken(variant: str) -> Iterator[str]:
    reason = why_not(variant) if variant in VARIANTS else None
    if reason is not None:
        pytest.skip(reason)
    with on_variant(variant):
        yield variant


@pytest.fixture(params=["memmod", *VARIANTS])
def variant(request, monkeypatch):
    """The automatic choice, then each backend and path; the library's convolutions repeat their bits."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    yield from taken(request.param)


@pytest.fixture(params=["memmod triton", "memmod cuda"])
def own(request):
    """Each backend with its own kernels wherever they serve a call."""
    yield from taken(request.param)


def assert_same_bits(got: Results, expected: Results) -> None:
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("case", [*CASES, FEW], ids=str)
def test_within_bound_and_the_same_bits_twice(variant, case):
    problems = [on_device(case.draw(seed)) for seed in range(3)]
    assert_within_bound(problems)
    first, second = run_op(problems[0]), run_op(problems[0])
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("wrong", [-2, 40, 2**40])
@pytest.mark.parametrize("pattern", ["mixed", "sets"])
@pytest.mark.parametrize("classes", [3, 40])
@pytest.mark.parametrize("granularity", ["unit", "input"])
@pytest.mark.parametrize("case", OPS)
def test_a_class_out_of_range_gives_nan_in_its_rows_only(variant, case, granularity, classes, pattern, wrong):
    # Four samples of two rows: a table of gates by class, by sample for 40 classes or sets.
    case = dataclasses.replace(
        case,
        shape=(8, *case.shape[1:]),
        rows_per_sample=2,
        pattern=pattern,
        classes=classes,
        granularity="unit" if case.op == "modulate_output" else granularity,
    )
    assert_nan_in_rows_of_one_sample(on_device(case.draw()), wrong)


def assert_nan_in_rows_of_one_sample(problem: Problem, wrong: int) -> None:
    """Sample 1 (rows 2 and 3) selects `wrong`: its rows are NaN, the others as if it had selected nothing."""
    index = problem.index.clone()
    index.view(index.shape[0], -1)[1, -1:] = wrong
    if problem.x.is_cuda:
        torch.cuda.set_sync_debug_mode("error")
    try:
        got = run_op(problem.replace(index=index), needs=("x",))
    finally:
        if problem.x.is_cuda:
            torch.cuda.set_sync_debug_mode("default")
    expected = run_op(problem.replace(index=torch.where(index == wrong, -1, index)), needs=("x",))
    others = [0, 1, 4, 5, 6, 7]
    for name in ("y", "dx"):
        assert got[name][2:4].isnan().all(), name
        assert not expected[name].isnan().any(), name
        assert torch.equal(got[name][others], expected[name][others]), name


@pytest.mark.parametrize("classes", [3, 40])
def test_a_class_out_of_range_in_the_reference(classes):
    dispatch.set_backend("reference")
    try:
        case = dataclasses.replace(OUTPUT, shape=(8, 31, 7, 5), rows_per_sample=2, classes=classes)
        assert_nan_in_rows_of_one_sample(on_device(case.draw()), 40)
    finally:
        dispatch.set_backend(None)


def test_memmod_check_asserts_on_the_device():
    code = (
        "import torch, memmod.ops\n"
        "x = torch.randn(2, 5, device='cuda')\n"
        "index = torch.tensor([0, 9], device='cuda')\n"
        "torch.ops.memmod.modulate_output.default(x, x, index, 1, 'sigmoid', False)\n"
        "torch.cuda.synchronize()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "MEMMOD_CHECK": "1"}, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "a selected class is not in -1 to 1" in done.stderr


def record(run: Callable[[], Results]) -> tuple[Results, Callable[[], None]]:
    """(the tensors that every replay writes, the replay of a CUDA graph of `run`)."""
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        # Kernels are compiled and workspaces allocated before the capture.
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    return results, graph.replay


def fill(target: Problem, source: Problem) -> None:
    """Overwrite the tensors of one problem with those of another."""
    for name in (*FLOATS, "index"):
        if getattr(target, name) is not None:
            getattr(target, name).copy_(getattr(source, name))


def assert_replays_as_eager(problems: list[Problem], recorder: Callable) -> None:
    """One recording, replayed on each problem's contents, gives what an eager call gives."""
    static = problems[0].map(torch.clone).replace(index=problems[0].index.clone())
    results, replay = recorder(lambda: run_op(static, NEEDS))
    seen = []
    for problem in problems:
        expected = run_op(problem, NEEDS)
        fill(static, problem)
        replay()
        assert_same_bits(results, expected)
        seen.append(results["y"].clone())
    assert not torch.equal(*seen[:2])  # the replays read the new contents


@pytest.mark.parametrize("pattern", ["mixed", "sets", "whole batch"])
@pytest.mark.parametrize("case", OPS)
def test_cuda_graphs_replay_with_new_contents(variant, case, pattern):
    case = dataclasses.replace(case, pattern=pattern)
    assert_replays_as_eager([on_device(case.draw(seed)) for seed in range(3)], record)


@pytest.mark.parametrize("case", OPS)
def test_a_side_stream_gives_the_same_bits(variant, case):
    problem = on_device(case.draw())
    expected = run_op(problem, NEEDS)
    # Filled late and on the side stream: a kernel on another stream would read NaN.
    late = problem.map(lambda t: torch.full_like(t, float("nan"))).replace(index=torch.full_like(problem.index, -1))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        fill(late, problem)
        got = run_op(late, NEEDS)
    torch.cuda.current_stream().wait_stream(side)
    assert_same_bits(got, expected)


@pytest.fixture
def room():
    """Skips a test that needs more GiB than are free; what earlier tests left in the cache is given back first."""

    def need(gib: int) -> None:
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0] / 2**30
        if free < gib:
            pytest.skip(f"needs {gib} GiB of free GPU memory, there are {free:.1f}")

    yield need
    torch.cuda.empty_cache()


# 3 samples x LONG x 1024 numbers are 2.9 million more than 2**31; the first and the last sample select a class.
LONG = 700_001
SELECTED = (1, -1, 0)


def heavy_tailed(shape: tuple[int, ...], **options) -> Tensor:
    """Random numbers whose last ones, beyond 2**31, are large: sums that leave them out are visibly wrong."""
    x = torch.randn(shape, **options)
    x.view(-1)[-x.numel() // 800 :] *= 16
    return x


@pytest.mark.parametrize(("shape", "dim"), [((3, LONG, 1024), 2), ((3, 1024, LONG), 1)], ids=["rows", "lines"])
def test_modulate_output_of_more_than_2_to_the_31_elements(own, room, shape, dim):
    room(18)
    assert_output_is_right(shape, dim, device="cuda", dtype=torch.bfloat16)


def assert_output_is_right(shape: tuple[int, int, int], dim: int, **options) -> None:
    # The identity gate's product is exact in fp32, so that every element can be compared.
    x, memory = heavy_tailed(shape, **options), torch.randn(2, shape[dim], device=options["device"])
    index = torch.tensor(SELECTED, device=x.device)
    y = torch.ops.memmod.modulate_output.default(x, memory, index, dim, "identity", False)[0]
    # With dy = x the gradient of x is y, and that of the memory the sum of squares.
    dx, dmemory = torch.ops.memmod.modulate_output_backward.default(x, x, memory, index, dim, "identity", [True, True])
    step = max(1, 2**26 // shape[2])
    for sample, selected in enumerate(SELECTED):
        s = memory[selected] if selected >= 0 else torch.ones_like(memory[0])
        s = (s if dim == 2 else s[:, None]).expand(shape[1:])
        total = torch.zeros(shape[dim], dtype=torch.float64, device=x.device)
        for first in range(0, shape[1], step):
            rows = slice(first, first + step)
            part = x[sample, rows].float()
            expected = (part * s[rows]).to(x.dtype)
            assert torch.equal(y[sample, rows], expected)
            assert torch.equal(dx[sample, rows], expected)
            squares = part.square().sum(2 - dim, dtype=torch.float64)
            if dim == 2:
                total += squares
            else:
                total[rows] = squares
        if selected >= 0:
            assert ((dmemory[selected] - total).abs() <= torch.finfo(x.dtype).eps * total).all()


@pytest.mark.parametrize("conv", [False, True], ids=["linear", "conv2d"])
@pytest.mark.parametrize(("inputs", "units", "gib"), [(64, 1024, 8), (1024, 64, 12)], ids=["y", "x"])
def test_layers_of_more_than_2_to_the_31_elements(own, room, inputs, units, gib, conv):
    room(gib)
    assert_layer_is_right(LONG, inputs, units, conv, device="cuda", dtype=torch.bfloat16)


def assert_layer_is_right(tokens: int, inputs: int, units: int, conv: bool, **options) -> None:
    """A linear layer, or the same as a 1x1 convolution of `tokens` pixels in channels_last."""
    x = heavy_tailed((3, tokens, inputs), **options)
    weight, bias = torch.randn(units, inputs, **options) / inputs**0.5, torch.randn(units, **options)
    memory, index = torch.randn(2, units, device=x.device), torch.tensor(SELECTED, device=x.device)
    call = (memory, None, index)
    # With dy = y the gradient of the memory is σ(−α) x the sum of squares of y.
    needs = [True, False, False, True, False]
    if conv:
        images, kernel, geometry = x[:, :, None].permute(0, 3, 1, 2), weight[:, :, None, None], ([1, 1], [0, 0], [1, 1])
        forward, backward = torch.ops.memmod.modulated_conv2d, torch.ops.memmod.modulated_conv2d_backward
        y = forward.default(images, kernel, bias, *call, "sigmoid", True, False, *geometry, 1)[0]
        dx, _, _, dmemory, _ = backward.default(
            y, images.shape, None, kernel, *call, y, "sigmoid", True, *geometry, 1, needs
        )
        y, dx = (t.permute(0, 2, 3, 1).squeeze(2) for t in (y, dx))
    else:
        forward, backward = torch.ops.memmod.modulated_linear, torch.ops.memmod.modulated_linear_backward
        y = forward.default(x, weight, bias, *call, "sigmoid", True, False)[0]
        dx, _, _, dmemory, _ = backward.default(y, x.shape, None, weight, *call, y, "sigmoid", True, needs)
    eps = torch.finfo(x.dtype).eps

    def product(a: Tensor, wide: Callable[[Tensor], Tensor], s: Tensor) -> tuple[Tensor, Tensor]:
        """(y, dx) of the rows `a`, whose y is taken from the op for dx."""
        z = F.linear(wide(x[a]), wide(weight), wide(bias)) * wide(s)
        return z.to(wide(x[a]).dtype), (wide(y[a]) * wide(s)).to(wide(x[a]).dtype) @ wide(weight)

    for sample, selected in enumerate(SELECTED):
        s = memory[selected].sigmoid() if selected >= 0 else torch.ones_like(memory[0])
        for rows in (slice(0, 256), slice(tokens - 256, tokens)):
            a = (sample, rows)
            exact, plain = product(a, torch.Tensor.double, s), product(a, lambda t: t.to(x.dtype), s)
            for got, right, naive in zip((y[a], dx[a]), exact, plain, strict=True):
                error, other = ((t.double() - right).abs().max() for t in (got, naive))
                assert error <= 2 * other + eps * right.abs().max()
        if selected >= 0:
            parts = y[sample].split(2**16)
            total = sum(part.float().square().sum(0, dtype=torch.float64) for part in parts)
            exact = total * torch.sigmoid(-memory[selected].double())
            assert ((dmemory[selected] - exact).abs() <= eps * exact).all()


def test_compiles_whole(own):
    torch._dynamo.reset()
    net = Net().cuda()
    assert_compiled_is_eager(net)


def assert_compiled_is_eager(net: Net) -> None:
    device = net.bias.device
    x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1)).to(device)
    x = x.contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(net, fullgraph=True)

    def step(model: torch.nn.Module, index: Tensor) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        y = model(leaf, index)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(device)
        return [y.detach(), *torch.autograd.grad(y, (leaf, *net.memories), dy)]

    outputs = []
    for selection in ([0, -1, 2, 1], [3, 3, -1, 0]):
        index = torch.tensor(selection, device=device)
        eager, got = step(net, index), step(compiled, index)
        for one, other in zip(eager, got, strict=True):
            torch.testing.assert_close(other, one)
        outputs.append(got[0])
    assert not torch.equal(*outputs)


@pytest.mark.parametrize(
    ("setting", "case"),
    [
        (torch.backends.cuda.matmul, Case("modulated_linear", (6, 5, 1023, 129), granularity="unit+input")),
        (torch.backends.cudnn.conv, dataclasses.replace(CONV, shape=(6, 64, 15, 13, 72, 3))),
    ],
    ids=["linear", "conv2d"],
)
def test_fp32_products_are_in_fp32_unless_tf32_is_allowed(own, setting, case):
    problems = [on_device(case.draw(seed)) for seed in range(3)]
    assert_within_bound(problems, needs=NEEDS)
    error = {}
    for precision in ("ieee", "tf32"):
        setting.fp32_precision = precision
        error[precision] = (run_op(problems[0])["y"] - run_oracle(problems[0])["y"]).abs().max().item()
    # TF32 keeps 10 bits of 23, and units that cut the others off have all their errors on one side.
    assert 16 * error["ieee"] < error["tf32"] < 2.0**-10 * magnitudes(problems[0])["y"]
