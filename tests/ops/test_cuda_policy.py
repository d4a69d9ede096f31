"""Which calls the CUDA C++ kernels take by themselves: from shapes, layouts and the GPU's kind."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from memmod.ops.backends import gpu_policy  # noqa: E402
from memmod.ops.backends.cuda import policy as cuda_paths  # noqa: E402
from memmod.ops.backends.cuda import register as cuda_kernels
from memmod.ops.backends.limits import gpu_supports  # noqa: E402
from memmod.ops.calls import CALLS, ConvGradCall, OutputCall  # noqa: E402
from tests.ops.problems import Case  # noqa: E402
from tests.ops.test_torch_library import backward_args  # noqa: E402

PADDED = (("padding", (1, 1)),)
LAST = {"layout": "channels_last", "dy_layout": "channels_last"}
LARGE = Case("modulated_conv2d", (4, 16, 64, 64, 16, 3), options=PADDED, **LAST)


@pytest.fixture
def old_gpu(monkeypatch):
    """A GPU whose matrix instruction is mma.sync."""
    monkeypatch.setattr(cuda_paths, "mma_sync_is_best", lambda device: True)


def passed_over(case: Case, **changes) -> str | None:
    return cuda_paths.passes_over(case.op)(case.draw().replace(**changes).call)


def test_every_op_has_a_line_with_its_reason():
    assert cuda_paths.TABLE.keys() == CALLS.keys()


def test_few_rows_of_a_linear_layer():
    assert passed_over(Case("modulated_linear", (16, 33, 31))) is None
    assert passed_over(Case("modulated_linear", (2, 8, 33, 31))) is None
    reason = passed_over(Case("modulated_linear", (17, 33, 31)))
    assert reason.startswith("taken up to 16 rows")
    assert cuda_paths.passes_over("modulated_linear_backward")(None) is not None


def test_the_tail_is_always_taken():
    assert passed_over(Case("modulate_output", (4, 3))) is None


def test_convolutions_that_would_be_fused_on_gpus_of_mma_sync(old_gpu):
    assert gpu_policy.conv_path(16, 9, 16, 4 * 64 * 64, False) == "fused"
    assert passed_over(LARGE) is None
    backward = cuda_paths.passes_over("modulated_conv2d_backward")
    frozen = [True, False, True, True, False]
    call = ConvGradCall(*backward_args(LARGE.draw(), frozen))
    assert backward(call) is None
    assert backward(call._replace(needs=[True, True, True, True, False])) is not None
    assert backward(call._replace(stride=(2, 2))) is not None


def test_convolutions_left_to_others(old_gpu):
    assert passed_over(LARGE, x=LARGE.draw().x.contiguous()) is not None
    assert passed_over(Case("modulated_conv2d", (4, 16, 8, 8, 16, 3), options=PADDED, **LAST)) is not None
    assert passed_over(LARGE, index=torch.zeros(1, dtype=torch.int64)) is not None
    groups = Case("modulated_conv2d", (4, 16, 64, 64, 16, 3), options=(*PADDED, ("groups", 2)), **LAST)
    assert passed_over(groups) is not None


@pytest.mark.parametrize(
    ("shape", "dim", "reason"),
    [
        ((2, cuda_kernels.CHANNELS), 1, None),
        ((2, cuda_kernels.CHANNELS + 1), 1, "channels, not 2097121"),
        ((1, 2, cuda_kernels.LINE), 1, None),
        ((1, 2, cuda_kernels.LINE + 1), 1, "behind the first two dims, not 268431361"),
        ((2**31, 2), 1, "counts rows in 32 bits, and there are 2147483648: split the batch"),
    ],
)
def test_sizes_that_the_kernels_count_to(monkeypatch, shape, dim, reason):
    monkeypatch.setattr(cuda_kernels, "_device", "meta")
    x, memory = torch.empty(shape, device="meta"), torch.empty(3, shape[dim], device="meta")
    index = torch.empty(1, dtype=torch.int64, device="meta")
    supports = gpu_supports("the CUDA kernel", cuda_kernels._unserved)["modulate_output"]
    got = supports(OutputCall(x, memory, index, dim, "sigmoid", False))
    assert got is None if reason is None else reason in got


def test_convolutions_on_other_devices():
    assert passed_over(LARGE).startswith("taken channels_last without groups")


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((9, 0), ["8.0", "9.0"], True),
        ((8, 6), ["8.0", "9.0"], True),
        ((8, 0), ["8.6"], False),
        ((12, 0), ["8.0", "9.0"], False),
        ((12, 0), ["8.0", "9.0+PTX"], True),
        ((8, 9), ["9.0+PTX"], False),
        ((9, 0), ["9.0a"], True),
        ((10, 0), ["9.0a", "10.0"], True),
        ((10, 3), ["9.0a"], False),
    ],
)
def test_gpus_that_the_extension_was_compiled_for(capability, architectures, runs):
    assert cuda_kernels.compiled_for(capability, architectures) == runs
