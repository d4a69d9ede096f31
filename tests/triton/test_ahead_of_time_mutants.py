"""Errors that the checks of machine code have to see, each beside its healthy twin."""

from __future__ import annotations

import os

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")
tl = pytest.importorskip("triton.language")

from memmod.kernels.configs import MatmulConfig  # noqa: E402
from tests.triton import report, variants  # noqa: E402
from tests.triton.aot import Expected, Launch, inspected, problems, recording  # noqa: E402
from tests.triton.variants import ARCHITECTURES, FIRST, GROUPS, empty, expect_product  # noqa: E402

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels cannot be compiled"),
]
each_arch = pytest.mark.parametrize(
    "arch", [arch if arch == FIRST else pytest.param(arch, marks=pytest.mark.exhaustive) for arch in ARCHITECTURES]
)


@triton.jit
def copy_kernel(x, y, STEP: tl.constexpr, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + o * STEP, tl.load(x + o * STEP))


@triton.jit
def sum_kernel(x, y, ATOMIC: tl.constexpr, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_sum = tl.sum(tl.load(x + o), axis=0)
    if ATOMIC:
        tl.atomic_add(y, b_sum)
    else:
        tl.store(y + tl.program_id(0), b_sum)


@triton.jit
def product_kernel(a, b, y, DOT: tl.constexpr, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    b_a, b_b = tl.load(a + o[:, None] * BLOCK + o[None, :]), tl.load(b + o[:, None] * BLOCK + o[None, :])
    if DOT:
        b_y = tl.dot(b_a, b_b)
    else:
        b_y = tl.sum(b_a[:, :, None].to(tl.float32) * b_b[None, :, :].to(tl.float32), axis=1)
    tl.store(y + o[:, None] * BLOCK + o[None, :], b_y.to(y.dtype.element_ty))


def found(launch: Launch, expected: Expected, arch: int) -> list[str]:
    (facts,) = inspected([launch], arch)
    return problems(facts, expected, arch)


def modulated(arch: int, monkeypatch: pytest.MonkeyPatch, *config: int, columns: bool = True) -> list[str]:
    """The problems of the real product kernel with a tile that the tables do not have."""
    monkeypatch.setitem(variants.MATMUL, (arch, 2), (MatmulConfig(*config),))
    with recording(arch) as launches:
        variants.product(arch, torch.bfloat16, variants.TALL, columns, out_gates=True)
    return found(launches[0], expect_product(launches[0]), arch)


@each_arch
def test_an_oversized_tile_spills(arch, monkeypatch):
    assert modulated(arch, monkeypatch, 64, 64, 32, 8, 4, 3) == []
    assert any(problem.startswith("spills") for problem in modulated(arch, monkeypatch, 128, 256, 64, 8, 4, 2))


@each_arch
def test_a_tile_with_too_many_stages_has_too_much_shared_memory(arch, monkeypatch):
    wrong = modulated(arch, monkeypatch, 128, 128, 128, 8, 8, 6)
    assert any("bytes of shared memory" in problem for problem in wrong)
    assert "no block fits on a multiprocessor" in wrong


@each_arch
def test_an_atomic(arch):
    arguments = {"x": empty(1 << 16), "y": empty(64), "BLOCK": 1024}
    assert found(Launch(sum_kernel, arguments | {"ATOMIC": False}, {}), Expected(), arch) == []
    wrong = found(Launch(sum_kernel, arguments | {"ATOMIC": True}, {}), Expected(), arch)
    assert wrong == ["1 atomics on global memory"]


@each_arch
def test_strides_that_leave_no_accesses_of_16_bytes(arch):
    expected = Expected(wide_loads=2, wide_stores=2)
    arguments = {"x": empty(1 << 16), "y": empty(1 << 16), "BLOCK": 1024}
    assert found(Launch(copy_kernel, arguments | {"STEP": 1}, {}), expected, arch) == []
    wrong = found(Launch(copy_kernel, arguments | {"STEP": 2}, {}), expected, arch)
    assert [problem.split(" of")[0] for problem in wrong] == ["0 global loads", "0 global stores"]


@each_arch
def test_a_product_without_tensor_cores(arch):
    square = [empty(16, 16, dtype=torch.bfloat16) for _ in range(3)]
    arguments = dict(zip("aby", square, strict=True)) | {"BLOCK": 16}
    expected = Expected(tensor_cores=True)
    assert found(Launch(product_kernel, arguments | {"DOT": True}, {}), expected, arch) == []
    assert found(Launch(product_kernel, arguments | {"DOT": False}, {}), expected, arch) == [
        "no tensor-core instruction"
    ]


def test_a_line_of_the_report_with_another_number(monkeypatch):
    """The comparison of test_ahead_of_time sees one register more or less."""
    group = next(group for group in GROUPS if group.form.kernel == "class_table")
    compilations = group.compilations()
    facts = variants.facts(compilations, group.arch)
    more = [one._replace(registers=one.registers + 1) for one in facts]
    (line,), (other,) = report.lines(group, compilations, facts), report.lines(group, compilations, more)
    written = report.text({group: [line]})
    assert line in report.sections(written)[group.arch] and other not in report.sections(written)[group.arch]
