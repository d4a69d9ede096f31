"""The CUDA kernels' machine code: no spills, no atomics, tensor cores, wide accesses; and errors that have to show."""

from __future__ import annotations

import re

import pytest

triton = pytest.importorskip("triton", reason="triton, whose disassembler is used, is not installed")

from tests.cuda import machine_code  # noqa: E402
from tests.cuda.machine_code import ARCHITECTURES, GOLDEN, ROOT, TOUCH, facts, problems  # noqa: E402
from tests.triton.report import REPORT, cuda_section  # noqa: E402
from tests.triton.variants import FIRST  # noqa: E402

RELEASE = machine_code.release()
pytestmark = pytest.mark.aot
each_arch = pytest.mark.parametrize(
    "arch", [arch if arch == FIRST else pytest.param(arch, marks=pytest.mark.exhaustive) for arch in ARCHITECTURES]
)
needs_nvcc = pytest.mark.skipif(RELEASE is None, reason="there is no nvcc on the PATH")


@needs_nvcc
@each_arch
@pytest.mark.parametrize("source", machine_code.kernels(), ids=lambda path: path.name)
def test_every_kernel(source, arch):
    found = facts(source, arch)
    assert found
    # What setup.py compiles for sm_90 has that architecture's instructions.
    assert all(kernel.count("BPT") == 0 for kernel in found) or (source.stem == "linear_fused" and arch != 90)
    assert {kernel.name: wrong for kernel in found if (wrong := problems(kernel))} == {}


@pytest.mark.exhaustive
@needs_nvcc
def test_the_report_is_up_to_date():
    written = cuda_section(REPORT.read_text())
    if f"Compiled by nvcc {RELEASE}." not in written:
        pytest.skip(f"the report is of another nvcc than {RELEASE}")
    found = machine_code.every_kernel()
    assert written == machine_code.section(found), "docs/gpu-report.md is out of date, run `make gpu-report`"
    # One register more or less shows.
    first, *others = found[80]
    assert written != machine_code.section({**found, 80: [first._replace(registers=first.registers + 1), *others]})


def test_ptx_of_every_wrapper():
    golden = GOLDEN.read_text()
    for instruction in (
        "cp.async.cg.shared.global",
        "cp.async.commit_group",
        "cp.async.wait_group",
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
        "cvt.rna.tf32.f32",
        "ld.global.nc.L1::no_allocate.v4.u32",
    ):
        assert instruction in golden


def test_every_wrapper_is_touched():
    text = (ROOT / "csrc/cuda/include/ptx.cuh").read_text().partition("#else")[0]
    wrappers = re.findall(r"__forceinline__ \w+ (?!name\b)(\w+)\(|^MEMMOD_MMA\((\w+),", text, re.MULTILINE)
    # What the wrappers themselves use.
    names = {function or product for function, product in wrappers} - {"shared_address"}
    assert len(names) >= 8
    touched = TOUCH.read_text()
    assert [name for name in names if not re.search(rf"\b{name}[<(]", touched)] == []


@needs_nvcc
def test_ptx_is_up_to_date():
    golden = GOLDEN.read_text()
    if not golden.startswith(f"// nvcc {RELEASE}\n"):
        pytest.skip(f"touch.ptx is of another nvcc than {RELEASE}")
    assert machine_code.touched() == golden, "run `python -m tests.cuda.machine_code`"


@needs_nvcc
@each_arch
def test_every_wrapper_is_assembled(arch):
    (kernel,) = facts(TOUCH, arch)
    assert kernel.count("HMMA") == 3
    for instruction in ("LDGSTS", "LDSM", "LDGDEPBAR", "DEPBAR"):
        assert kernel.count(instruction)


LINES = "template <typename T> __global__ void modulate_lines_kernel(const T* x, T* y)"
COPY = "reinterpret_cast<float4*>(y)[threadIdx.x] = reinterpret_cast<const float4*>(x)[threadIdx.x];"
CONV2D = "template <typename T, bool, bool, int> __global__ void conv2d_kernel(const T* x, T* y)"
PRODUCT = """
__shared__ __align__(16) float tile[128];
memmod::ptx::cp_async(tile, x, 16);
memmod::ptx::cp_async_wait<0>();
float c[4] = {};
const uint32_t a[4] = {1, 2, 3, threadIdx.x}, b[2] = {1, threadIdx.x};
memmod::ptx::mma_tf32(c, a, b);
for (int i = 0; i < 4; ++i) y[4 * threadIdx.x + i] = c[i] + tile[i];
"""
KERNELS = {
    LINES: ("template __global__ void modulate_lines_kernel<float>(const float*, float*);", COPY),
    CONV2D: ("template __global__ void conv2d_kernel<float, false, true, 3>(const float*, float*);", PRODUCT),
}
PLANTED = {
    "a float atomic": (LINES, COPY + "atomicAdd(y, x[threadIdx.x]);", ["atomics on global memory"]),
    "an array with an index that is computed": (
        LINES,
        COPY + "float a[32]; for (int i = 0; i < 32; ++i) a[i] = 2 * x[i];"
        "for (int i = 32; i < 99; ++i) a[static_cast<int>(x[i])] += 1; for (int i = 0; i < 32; ++i) y[i] = a[i];",
        ["bytes of stack", "accesses to local memory"],
    ),
    "4 bytes at a time": (LINES, "y[threadIdx.x] = x[threadIdx.x];", ["no LDG of 128 bits", "no STG of 128 bits"]),
    "loads of 4 bytes": (
        LINES,
        "const int i = 4 * threadIdx.x; reinterpret_cast<float4*>(y)[i] = {x[2 * i], x[3 * i], x[5 * i], x[7 * i]};",
        ["no LDG of 128 bits"],
    ),
    "a product without tensor cores": (
        CONV2D,
        PRODUCT.replace(
            "memmod::ptx::mma_tf32(c, a, b);", "for (int i = 0; i < 4; ++i) c[i] += x[a[i]] * x[b[i / 2]];"
        ),
        ["no tensor-core instruction"],
    ),
    "copies of 4 bytes": (
        CONV2D,
        PRODUCT.replace("memmod::ptx::cp_async(tile, x, 16);", "tile[threadIdx.x] = x[threadIdx.x];"),
        ["no LDGSTS of 128 bits"],
    ),
}


def found(head: str, body: str, arch: int, folder) -> list[str]:
    """The problems of a kernel with this body."""
    source = folder / "planted.cu"
    source.write_text(f'#include "ptx.cuh"\n{head} {{\n{body}\n}}\n{KERNELS[head][0]}\n')
    (kernel,) = facts(source, arch)
    return problems(kernel)


@needs_nvcc
@each_arch
@pytest.mark.parametrize("error", PLANTED)
def test_planted_errors(error, arch, tmp_path):
    head, body, says = PLANTED[error]
    assert body != KERNELS[head][1] and found(head, KERNELS[head][1], arch, tmp_path) == []
    wrong = found(head, body, arch, tmp_path)
    assert len(wrong) == len(says) and all(map(str.endswith, wrong, says)), wrong
