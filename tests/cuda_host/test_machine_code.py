"""The CUDA kernels' machine code: no spills, no atomics, tensor cores, wide accesses; and errors that have to show."""

from __future__ import annotations

import pytest

triton = pytest.importorskip("triton", reason="triton, whose disassembler is used, is not installed")

from tests.cuda_host import machine_code  # noqa: E402
from tests.cuda_host.machine_code import ARCHITECTURES, GOLDEN, TOUCH, Facts, facts, problems  # noqa: E402
from tests.kernels.report import REPORT, cuda_section  # noqa: E402

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(machine_code.release() is None, reason="there is no nvcc on the PATH"),
]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("source", machine_code.kernels(), ids=lambda path: path.name)
def test_every_kernel(source, arch):
    found = facts(source, arch)
    assert found
    assert {kernel.name: wrong for kernel in found if (wrong := problems(kernel))} == {}


def test_the_report_is_up_to_date():
    written = cuda_section(REPORT.read_text())
    if f"Compiled by nvcc {machine_code.release()}." not in written:
        pytest.skip(f"the report is of another nvcc than {machine_code.release()}")
    assert written == machine_code.section(machine_code.every_kernel()), "run `make gpu-report`"


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
    ):
        assert instruction in golden
    if not golden.startswith(f"// nvcc {machine_code.release()}\n"):
        pytest.skip(f"touch.ptx is of another nvcc than {machine_code.release()}")
    assert machine_code.touched() == golden, "run `python -m tests.cuda_host.machine_code`"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_wrapper_is_assembled(arch):
    (kernel,) = facts(TOUCH, arch)
    assert kernel.count("HMMA") == 3
    for instruction in ("LDGSTS", "LDSM", "LDGDEPBAR|DEPBAR"):
        assert kernel.count(instruction)


PLANTED = {
    "atomics on global memory": "y[0] = 0; atomicAdd(y, x[threadIdx.x]);",
    "bytes of stack": "float a[32]; for (int i = 0; i < 32; ++i) a[i] = 2 * x[i]; "
    "for (int i = 32; i < 99; ++i) a[int(x[i])] += 1; "
    "for (int i = 0; i < 32; ++i) y[i] = a[i];",
    "no LDG of 128 bits": "y[threadIdx.x] = x[threadIdx.x];",
}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("says", PLANTED)
def test_planted_errors(says, arch, tmp_path):
    source = tmp_path / "planted.cu"
    source.write_text(
        "template <typename T> __global__ void modulate_lines_kernel(const T* x, T* y) { "
        + PLANTED[says]
        + " }\ntemplate __global__ void modulate_lines_kernel<float>(const float*, float*);\n"
    )
    (kernel,) = facts(source, arch)
    assert any(says in problem for problem in problems(kernel)), problems(kernel)


def test_a_product_without_tensor_cores():
    kernel = Facts("conv2d_kernel<float, false, true, 3>", 1, 0, 0, 0, ("FFMA", "LDGSTS.E.BYPASS.128"))
    assert problems(kernel) == ["no tensor-core instruction"]
    assert problems(kernel._replace(code=("HMMA.1688.F32.TF32", "LDGSTS.E.BYPASS.128"))) == []
