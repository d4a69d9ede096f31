"""The shim's bodies of the PTX wrappers, each by itself, against the layouts that the PTX ISA publishes."""

from __future__ import annotations

import ctypes

import pytest
import torch

from tests.cuda import plugin

pytestmark = pytest.mark.cuda_host


@pytest.fixture
def run(pytestconfig):
    """Runs a kernel of wrappers.cu; an error of the shim is raised."""
    function = pytestconfig.stash[plugin.SHIM].memmod_test_run
    function.restype = ctypes.c_char_p

    def call(name: str, *tensors: torch.Tensor, number: int = 0) -> None:
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in tensors] + [None] * (4 - len(tensors))
        error = function(name.encode(), *pointers, ctypes.c_uint(number))
        if error is not None:
            raise RuntimeError(error.decode())

    return call


def test_ldmatrix(run):
    rows = torch.arange(32 * 4, dtype=torch.int32).view(32, 4)
    out = torch.full((32, 4), -1, dtype=torch.int32)
    run("ldmatrix", rows, out)
    for lane in range(32):
        for matrix in range(4):
            # "each thread ... holds one element pair of a row": thread 4·row + pair.
            assert out[lane, matrix] == rows[8 * matrix + lane // 4, lane % 4]


MMA = {"mma_bf16": (torch.bfloat16, 16), "mma_f16": (torch.float16, 16), "mma_tf32": (torch.float32, 8)}


@pytest.mark.parametrize("name", MMA)
def test_mma(run, name):
    dtype, depth = MMA[name]
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=g).to(dtype) for shape in ((16, depth), (depth, 8)))
    c = torch.randn(16, 8, generator=g)
    fragments_a, fragments_b, fragments_c = pack(a, b, c, depth)
    run(name, fragments_a, fragments_b, fragments_c)
    if dtype is torch.float32:
        # The unit reads 10 of 23 bits.
        a, b = ((t.view(torch.int32) & -(2**13)).view(torch.float32) for t in (a, b))
    expected = a.double() @ b.double() + c.double()
    torch.testing.assert_close(unpack(fragments_c).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MMA)
@pytest.mark.parametrize("sign", [1, -1])
def test_mma_adds_towards_zero(run, name, sign):
    # As tensor cores do; 1 + 2**-23 is the nearest number.
    dtype, depth = MMA[name]
    a, b = torch.zeros(16, depth), torch.zeros(depth, 8)
    a[:, 0], b[0] = sign * 1.5 * 2**-12, 2**-12
    words_a, words_b, words_c = pack(a.to(dtype), b.to(dtype), torch.full((16, 8), float(sign)), depth)
    run(name, words_a, words_b, words_c)
    assert (unpack(words_c) == sign).all()
    # 2**-23 arrives.
    a[:, 0] *= 4 / 3
    words_a, words_b, words_c = pack(a.to(dtype), b.to(dtype), torch.full((16, 8), float(sign)), depth)
    run(name, words_a, words_b, words_c)
    assert (unpack(words_c) == sign * (1 + 2**-23)).all()


def pack(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, depth: int) -> tuple[torch.Tensor, ...]:
    """The registers of all lanes, by the formulas of "Matrix Fragments for mma.m16n8k16" and ".m16n8k8" (.tf32)."""
    per_word = 2 if depth == 16 else 1
    numbers_a, numbers_b = (torch.empty(32, n * per_word, dtype=a.dtype) for n in (4, 2))
    for lane in range(32):
        group, thread = divmod(lane, 4)
        for i in range(numbers_a.shape[1]):
            if depth == 16:
                row = group if i in (0, 1, 4, 5) else group + 8
                column = thread * 2 + (i & 1) + (8 if i >= 4 else 0)
            else:
                row, column = group + 8 * (i in (1, 3)), thread + 4 * (i in (2, 3))
            numbers_a[lane, i] = a[row, column]
        for i in range(numbers_b.shape[1]):
            row = thread * 2 + (i & 1) + (8 if i >= 2 else 0) if depth == 16 else thread + 4 * i
            numbers_b[lane, i] = b[row, group]
    numbers_c = torch.empty(32, 4)
    for lane in range(32):
        for i, (row, column) in enumerate(places_c(lane)):
            numbers_c[lane, i] = c[row, column]
    return numbers_a, numbers_b, numbers_c


def places_c(lane: int) -> list[tuple[int, int]]:
    group, thread = divmod(lane, 4)
    return [(group + 8 * (i >= 2), thread * 2 + (i & 1)) for i in range(4)]


def unpack(numbers: torch.Tensor) -> torch.Tensor:
    c = torch.empty(16, 8)
    for lane in range(32):
        for i, place in enumerate(places_c(lane)):
            c[place] = numbers[lane, i]
    return c


@pytest.mark.parametrize("size", [16, 6, 0])
def test_cp_async(run, size):
    x = torch.randint(0, 256, (16,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    early, out = torch.zeros(16, dtype=torch.uint8), torch.zeros(32, dtype=torch.uint8)
    run("cp_async", x, early, out, number=size)
    expected = torch.where(torch.arange(16) < size, x, 0)
    assert torch.equal(out, expected.repeat(2))
    assert (early == 0xFF).all(), "a copy that was not waited for is NaN"


def test_to_tf32(run):
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    # A half of TF32's last place, which is rounded away from zero; and numbers that stay what they are.
    x[:6] = torch.tensor([1 + 2**-11, -1 - 2**-11, 1 + 3 * 2**-11, float("inf"), 0.0, 1 - 2**-24])
    out = torch.zeros(64, dtype=torch.int32)
    run("to_tf32", x, out, number=64)
    got = out.view(torch.float32)
    assert got[:6].tolist() == [1 + 2**-10, -1 - 2**-10, 1 + 2**-9, float("inf"), 0.0, 1.0]
    assert (out & 0x1FFF == 0).all()
    finite = x.isfinite()
    assert ((got - x).abs() <= x.abs() * 2**-11)[finite].all()


def test_warps(run):
    x = torch.randn(32, generator=torch.Generator().manual_seed(0))
    out, votes, total = torch.zeros(32), torch.zeros(32, dtype=torch.int32), torch.zeros(1)
    run("warp", x, out, votes, total)
    torch.testing.assert_close(out, x[torch.arange(32) ^ 1] + x[7])
    assert (votes == int("10" * 16, 2) - 2**32).all()
    torch.testing.assert_close(total, x.sum(0, keepdim=True))
