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
HOST = torch.device("cpu")
LAST = {"layout": "channels_last", "dy_layout": "channels_last"}
LARGE = Case("modulated_conv2d", (4, 16, 64, 64, 16, 3), options=PADDED, **LAST)


@pytest.fixture
def old_gpu(monkeypatch):
    """A GPU whose matrix instruction is mma.sync."""
    monkeypatch.setattr(cuda_paths, "mma_sync_is_best", lambda device: True)


@pytest.fixture
def path():
    yield gpu_policy.force
    gpu_policy.force(None)


def passed_over(case: Case, **changes) -> str | None:
    return cuda_paths.passes_over(case.op)(case.draw().replace(**changes).call)


def test_every_op_has_a_line_with_its_reason():
    assert cuda_paths.TABLE.keys() == CALLS.keys()


# Rows, inputs and units of a product that Triton fuses: large, with few inputs.
FUSED = (64, 256, 64, 256)


def test_few_rows_of_a_linear_layer_and_products_that_are_not_fused():
    assert passed_over(Case("modulated_linear", (16, 33, 31))) is None
    assert passed_over(Case("modulated_linear", (2, 8, 33, 31))) is None
    assert gpu_policy.linear_path(HOST, 64, 64 * 256 * 256, whole_batch=False) == "fused"
    assert passed_over(Case("modulated_linear", FUSED)).startswith("taken up to 16 rows")
    assert gpu_policy.linear_path(HOST, 64, 2 * 256 * 256, whole_batch=False) == "unfused"
    assert passed_over(Case("modulated_linear", (2, *FUSED[1:]))) is None
    assert passed_over(Case("modulated_linear", FUSED, "whole batch")) is None


def test_few_rows_are_left_to_the_library_where_that_is_forced(path):
    call = Case("modulated_linear", (16, 33, 31)).draw().call
    assert cuda_paths.few_rows(call)
    path("unfused")
    assert not cuda_paths.few_rows(call)


def test_gradients_and_the_tail_are_always_taken():
    assert passed_over(Case("modulate_output", (4, 3))) is None
    for op in ("modulated_linear_backward", "modulated_conv2d_backward", "modulate_output_backward"):
        assert cuda_paths.passes_over(op)(None) is None


def test_convolutions_that_would_be_fused_are_its_own_on_gpus_of_mma_sync(old_gpu):
    assert gpu_policy.conv_path(HOST, 16, 9, 16, 4 * 64 * 64, False) == "fused"
    call = LARGE.draw().call
    assert passed_over(LARGE) is None and cuda_paths.conv2d_path(call, True, False) == "fused"
    assert not cuda_paths.by_library(call)
    gradient = ConvGradCall(*backward_args(LARGE.draw(), [True, False, True, True, False]))
    assert cuda_paths.conv2d_dx_is_own(gradient, True)
    assert not cuda_paths.conv2d_dx_is_own(gradient, False)
    assert not cuda_paths.conv2d_dx_is_own(gradient._replace(stride=(2, 2)), True)


def test_gates_go_into_a_weight_that_has_fewer_numbers_than_the_output(path):
    assert gpu_policy.whole_batch(1, 64, 64) and not gpu_policy.whole_batch(1, 63, 64)
    assert not gpu_policy.whole_batch(2, 64, 64)
    path("fold")
    assert gpu_policy.whole_batch(1, 63, 64) and not gpu_policy.whole_batch(2, 64, 64)


@pytest.mark.parametrize(("capability", "generation"), [((8, 0), 8), ((9, 0), 9), ((10, 0), 9), ((12, 0), 8)])
def test_generations(monkeypatch, capability, generation):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu_policy.generation.cache_clear()
    device = torch.device("cuda:0")
    assert gpu_policy.generation(device) == generation
    # What was measured on an H200: no product by pointers pays.
    path = gpu_policy.linear_path(device, 64, 1 << 24, whole_batch=False)
    gpu_policy.generation.cache_clear()
    assert path == ("unfused" if generation == 9 else "fused")


def test_the_same_are_left_to_triton_on_other_gpus(path):
    call = LARGE.draw().call
    assert passed_over(LARGE).startswith("taken where Triton would not fuse")
    assert cuda_paths.conv2d_path(call, True, False) == "unfused" and cuda_paths.by_library(call)
    path("fused")
    assert cuda_paths.conv2d_path(call, True, False) == "fused"


def test_convolutions_by_the_library(old_gpu):
    groups = Case("modulated_conv2d", (4, 16, 64, 64, 16, 3), options=(*PADDED, ("groups", 2)), **LAST)
    small = Case("modulated_conv2d", (4, 16, 8, 8, 16, 3), options=PADDED, **LAST)
    first = Case("modulated_conv2d", LARGE.shape, options=PADDED)
    for case in (groups, small, first):
        assert passed_over(case) is None
        assert cuda_paths.by_library(case.draw().call)
    whole = LARGE.draw().replace(index=torch.zeros(1, dtype=torch.int64)).call
    assert cuda_paths.conv2d_path(whole, True, True) == "fold"


def test_gates_go_into_the_weight_of_a_convolution_where_that_saves_a_pass(path):
    whole = LARGE.draw().replace(index=torch.zeros(1, dtype=torch.int64)).call
    size = (4 * 64 * 64, 16 * 9)
    # The library's pass that adds the bias is as large as the tail; with gates of inputs there is one over x too.
    assert not gpu_policy.whole_batch_conv(whole, *size)
    assert gpu_policy.whole_batch_conv(whole._replace(input_memory=torch.zeros(7, 16)), *size)
    without = whole._replace(bias=None)
    assert gpu_policy.whole_batch_conv(without, *size) and not gpu_policy.whole_batch_conv(without, 100, 16 * 9)
    path("fold")
    assert gpu_policy.whole_batch_conv(whole, *size)


def test_a_convolution_of_a_whole_batch_is_left_to_triton_where_it_has_a_bias():
    whole = {"index": torch.zeros(1, dtype=torch.int64)}
    assert passed_over(LARGE, **whole).startswith("taken where Triton would not fuse")
    assert passed_over(LARGE, **whole, bias=None) is None


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
    monkeypatch.setattr(cuda_paths, "device_type", "meta")
    x, memory = torch.empty(shape, device="meta"), torch.empty(3, shape[dim], device="meta")
    index = torch.empty(1, dtype=torch.int64, device="meta")
    supports = gpu_supports("the CUDA kernel", cuda_kernels._unserved)["modulate_output"]
    got = supports(OutputCall(x, memory, index, dim, "sigmoid", False))
    assert got is None if reason is None else reason in got


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


@pytest.fixture
def hopper(monkeypatch):
    """A GPU that has linear_fused.cu's instructions."""
    monkeypatch.setattr(cuda_paths, "has_linear_fused", lambda device: True)


def many(dtype=torch.bfloat16, pattern="mixed", shape=(8, 64, 256, 64), **changes) -> bool:
    problem = Case("modulated_linear", shape, pattern, dtype=dtype).draw().replace(**changes)
    return cuda_paths.many_rows(problem.call, None)


def test_products_of_many_rows_in_16_bits(hopper):
    assert many() and many(torch.float16) and many(pattern="sets") and many(pattern="whole batch")
    assert not many(torch.float32)
    # Fewer than 43 rows of a sample, than 256 rows; inputs or units that are no multiple of 8.
    assert many(shape=(8, 43, 256, 64)) and not many(shape=(8, 42, 256, 64))
    assert not many(shape=(4, 63, 256, 64)) and many(shape=(4, 64, 256, 64))
    assert not many(shape=(8, 64, 252, 64)) and not many(shape=(8, 64, 256, 60))


def test_what_that_product_does_not_do(hopper, path):
    case = Case("modulated_linear", (8, 64, 256, 64), dtype=torch.bfloat16, granularity="unit+input")
    assert not cuda_paths.many_rows(case.draw().call, None)
    kept = Case("modulated_linear", (8, 64, 256, 64), dtype=torch.bfloat16, keep_gated=True)
    assert not cuda_paths.many_rows(kept.draw().call, None)
    call = Case("modulated_linear", (2, 64, 256, 64), dtype=torch.bfloat16).draw().call
    assert [cuda_paths.many_rows(call, forced) for forced in (None, "fused", "unfused", "fold")] == [0, 1, 0, 0]


def test_convolutions_that_are_products_of_each_pixel(hopper):
    def taken(shape, **options) -> bool:
        return cuda_paths.pointwise(Case("modulated_conv2d", shape, dtype=torch.bfloat16, **options).draw().call, None)

    assert taken((8, 64, 8, 8, 32, 1), **LAST) and taken((8, 64, 7, 7, 32, 1), **LAST)
    assert not taken((8, 64, 8, 8, 32, 1))
    assert not taken((8, 64, 8, 8, 32, 3), **LAST)
    for options in ((("stride", (2, 2)),), (("padding", (1, 1)),), (("groups", 8),)):
        assert not taken((8, 64, 16, 16, 32, 1), options=options, **LAST)
