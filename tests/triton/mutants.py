"""Errors planted in the kernels' source, each with the check that has to see it. A plant changes a copy: the files of
the tree stay as they are."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from memmod.ops import dispatch
from memmod.ops.backends import gpu_policy
from memmod.ops.backends.triton.register import PRIMITIVES
from memmod.ops.calls import CALLS
from tests.ops.bounds import assert_within_bound, run_op
from tests.ops.problems import Case, Problem
from tests.triton.cost import record
from tests.triton.lint import sources

PACKAGE = "memmod.kernels"


class Plant(NamedTuple):
    """One error: in `file`, `snippet` becomes `replacement`; it is there `times` times."""

    name: str
    file: str
    snippet: str
    replacement: str
    check: str
    """lint: RULE, or a key of `CHECKS`"""
    case: Case | None = None
    """of a check that runs an op"""
    sees: str = ""
    """what the check's message says first"""
    times: int = 1

    def sources(self) -> dict[str, str]:
        """The kernels' files with the error."""
        files = sources()
        found = files[self.file].count(self.snippet)
        assert found == self.times, f"{self.name}: {self.file} has its snippet {found} times, not {self.times}"
        assert self.snippet != self.replacement
        files[self.file] = files[self.file].replace(self.snippet, self.replacement)
        return files


@contextmanager
def kernels_from(files: dict[str, str]) -> Iterator[None]:
    """In the `with` block memmod.kernels are the given files; what was imported before keeps the real ones."""
    package = importlib.import_module(PACKAGE)

    def forget() -> dict[str, Any]:
        # With them the module that the ops call them through.
        names = [name for name in sys.modules if name.startswith(f"{PACKAGE}.") or name == PRIMITIVES]
        return {name: sys.modules.pop(name) for name in names}

    def parent(name: str) -> Any:
        return sys.modules[name.rpartition(".")[0]]

    before, path = forget(), package.__path__
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text)
        package.__path__ = [folder]
        try:
            # Every layer that can takes the fused kernels: the sizes are too small for that by themselves.
            gpu_policy.force("fused")
            assert Path(importlib.import_module(f"{PACKAGE}.gates").__file__).parent == Path(folder)
            yield
        finally:
            gpu_policy.force(None)
            package.__path__ = path
            for name in forget():
                delattr(parent(name), name.rpartition(".")[2])
            sys.modules.update(before)
            for name, module in before.items():
                setattr(parent(name), name.rpartition(".")[2], module)


def run_directly(problem: Problem) -> tuple[Tensor, ...]:
    """The results of a call and of its backward by the host functions, without the dispatcher in between."""
    kernel, backward = (dispatch.kernel(f"{problem.op}{suffix}", "triton").run for suffix in ("", "_backward"))
    y, saved = kernel(problem.call)
    saved = saved if saved.numel() else y
    grad_call = CALLS[f"{problem.op}_backward"]
    if problem.op == "modulate_output":
        args = (problem.dy, saved, problem.memory, problem.index, problem.dim, problem.gate, (True, True))
        return y, *backward(grad_call(*args))
    tensors = (problem.x, problem.weight, problem.memory, problem.input_memory, problem.index, saved)
    needs = (True, False, problem.bias is not None, problem.memory is not None, problem.input_memory is not None)
    geometry = problem.args[9:]
    args = (problem.dy, problem.x.shape, *tensors, problem.gate, problem.gate_bias, *geometry, needs)
    return y, *backward(grad_call(*args))


class Guarded(TorchDispatchMode):
    """New tensors lie inside larger buffers, whose other bytes must stay as they are."""

    MARGIN, BYTE = 1 << 16, 0xA5

    def __init__(self):
        super().__init__()
        self.buffers: list[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        if func.overloadpacket.__name__ not in ("empty", "empty_like", "new_empty", "empty_strided"):
            return made
        size = made.untyped_storage().nbytes()
        buffer = torch.full((size + 2 * self.MARGIN,), self.BYTE, dtype=torch.uint8)
        self.buffers.append(buffer)
        inside = buffer[self.MARGIN : self.MARGIN + size].view(made.dtype)
        return inside.as_strided(made.size(), made.stride(), inside.storage_offset())

    def assert_untouched(self) -> None:
        for buffer in self.buffers:
            outside = torch.cat([buffer[: self.MARGIN], buffer[-self.MARGIN :]])
            assert (outside == self.BYTE).all(), "outside: an output's surroundings were written"


def check_bound(case: Case) -> None:
    """Outputs and gradients keep the error bound; new tensors start as NaN, so one that is not written shows."""
    torch.use_deterministic_algorithms(True)
    try:
        assert_within_bound([case.draw(seed) for seed in range(2)])
    finally:
        torch.use_deterministic_algorithms(False)


def check_zero(case: Case) -> None:
    """The gradient of a class that no sample selects is exactly 0."""
    problem = case.draw()
    selected = torch.zeros(case.classes, dtype=torch.bool)
    selected[problem.index[problem.index >= 0]] = True
    dmemory = run_op(problem)["dmemory"]
    assert dmemory[selected].any()
    assert not dmemory[~selected].any(), "unselected: the gradient of a class that nothing selects is not 0"


def check_guard(case: Case) -> None:
    """Nothing outside of the outputs is written."""
    with Guarded() as guard:
        run_directly(case.draw())
    assert guard.buffers
    guard.assert_untouched()


def check_reads(case: Case) -> None:
    """Every load and store is inside its argument."""
    with record() as launches:
        run_directly(case.draw())
    strays = [stray for launch in launches for stray in launch.strays]
    assert launches and not strays, f"strays: {strays[0]}"


CHECKS = {"bound": check_bound, "zero": check_zero, "guard": check_guard, "reads": check_reads}

# 30 rows: tiles of 16 x 32 in steps of 16, with rows of several samples. 111 rows: tiles of 32 x 64, of two at most.
MANY = Case("modulated_linear", (6, 5, 33, 39), classes=5, granularity="unit+input")
PAIRS = Case("modulated_linear", (3, 37, 33, 39), classes=3, granularity="unit+input", gate_bias=False)
SETS = Case("modulated_linear", (6, 5, 33, 39), "sets", granularity="unit+input")
CONV = Case(
    "modulated_conv2d",
    (3, 5, 6, 7, 18, 3),
    classes=3,
    granularity="unit+input",
    layout="channels_last",
    dy_layout="channels_last",
    options=(("padding", (1, 1)),),
)
ONE_CLASS = Case("modulated_linear", (6, 5, 33, 39), "one")
ROWS = Case("modulate_output", (5, 150, 37), classes=4, options=(("dim", -1),))
LINES = Case("modulate_output", (5, 7, 23, 31), classes=4)
# By the library and the tail, whose rows the second has.
CONV_LINES = Case("modulated_conv2d", (3, 5, 6, 7, 18, 3), classes=3)
CONV_ROWS = Case("modulated_conv2d", (3, 6, 6, 7, 18, 3), layout="channels_last", options=(("groups", 2),))

LOAD_A = "b_a = tl.load(p_a, mask=m_m[:, None] & m_k[None, :], other=0.0)"
STORE_Y = "tl.store(y + o_y, b_y.to(y.dtype.element_ty), mask=m_y)"
DOT = "b_z = tl.dot(b_a, b_b, b_z, input_precision=PRECISION)"
MASK_Y = "m_y = m_m[:, None] & m_n[None, :]"
MASK_ROWS = "m = m_b[:, None, None] & (o_t < T)[None, :, None] & m_k[None, None, :]"
ADDED, NOT_ADDED = '{"BIAS_INSIDE": bias_inside}', '{"BIAS_INSIDE": False}'
KERNEL = "@triton.jit\ndef modulated_matmul_kernel("
TUNED = "@triton.autotune(configs=[triton.Config({})], key=['M'])\n"
NO_OTHER = Plant("a load without other=", "linear.py", LOAD_A, LOAD_A.replace(", other=0.0", ""), "lint: other")

LINTED = (
    Plant("a load without mask=", "linear.py", LOAD_A, "b_a = tl.load(p_a, other=0.0)", "lint: mask"),
    Plant("a store without mask=", "linear.py", STORE_Y, STORE_Y.replace(", mask=m_y", ""), "lint: mask"),
    NO_OTHER,
    Plant(
        "an atomic for the last sum",
        "sums.py",
        "tl.store(dmemory + o, b_sum, mask=m)",
        "tl.atomic_add(dmemory + o, b_sum, mask=m)",
        "lint: atomic",
    ),
    Plant("an output's row times N in 32 bits", "linear.py", "o_y = o_m.to(tl.int64)", "o_y = o_m", "lint: offset"),
    Plant("a row of a times K in 32 bits", "linear.py", "p_a = a + o_m.to(tl.int64)", "p_a = a + o_m", "lint: offset"),
    Plant("an image's start in 32 bits", "conv2d.py", "o_image.to(tl.int64) * H", "o_image * H", "lint: offset"),
    Plant("a pixel's start in 32 bits", "conv2d.py", "(o_y.to(tl.int64) * W", "(o_y * W", "lint: offset"),
    Plant("a sample's start in 32 bits", "output.py", "o_first = o_b.to(tl.int64)", "o_first = o_b", "lint: offset"),
    Plant(
        "a split's sums in 32 bits",
        "sums.py",
        "sums + tl.cast(i_split, tl.int64) * SIZE",
        "sums + i_split * SIZE",
        "lint: offset",
    ),
    Plant("tuning at run time", "linear.py", KERNEL, TUNED + KERNEL, "lint: autotune"),
    Plant("a product without the precision", "linear.py", DOT, DOT[: DOT.index(", input")] + ")", "lint: precision"),
    Plant(
        "a product with a fixed precision",
        "conv2d.py",
        "input_precision=PRECISION)",
        'input_precision="tf32")',
        "lint: precision",
    ),
    Plant(
        "a product added behind tl.dot",
        "linear.py",
        DOT,
        "b_z += tl.dot(b_a, b_b, input_precision=PRECISION)",
        "lint: accumulator",
    ),
    Plant(
        "an accumulator in fp16",
        "linear.py",
        "tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)",
        "tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float16)",
        "lint: accumulator",
    ),
    Plant(
        "gates evaluated in the product",
        "linear.py",
        "b_a = (b_a * b_s).to(b_a.dtype)",
        "b_a = (b_a * tl.sigmoid(b_s)).to(b_a.dtype)",
        "lint: gates",
    ),
    Plant(
        "gates rounded to bf16",
        "gates.py",
        "b_alpha = tl.sigmoid(b_alpha)",
        "b_alpha = tl.sigmoid(b_alpha).to(tl.bfloat16)",
        "lint: bf16",
    ),
    Plant(
        "sums in fp64",
        "output.py",
        "b_sum = tl.zeros((BLOCK_B, BLOCK_K), dtype=tl.float32)",
        "b_sum = tl.zeros((BLOCK_B, BLOCK_K), dtype=tl.float64)",
        "lint: float64",
    ),
)

RUN = (
    Plant(
        "the sample of the row behind",
        "gates.py",
        "b_row = table_row(rows, o_m // T, B)",
        "b_row = table_row(rows, (o_m + 1) // T, B)",
        "bound",
        MANY,
        "y: error",
    ),
    Plant(
        "a tile's first sample has a row too many",
        "gates.py",
        "m_first = o_m < (i_b + 1) * T",
        "m_first = o_m <= (i_b + 1) * T",
        "bound",
        PAIRS,
        "y: error",
    ),
    Plant(
        "-1 taken for the last class, in a table by class",
        "gates.py",
        "    m_row = (b_row >= 0) & (b_row < R)\n",
        "    b_row = tl.where(b_row == -1, R - 1, b_row)\n    m_row = (b_row >= 0) & (b_row < R)\n",
        "bound",
        MANY,
        "y: error",
    ),
    Plant(
        "-1 taken for the last class, in a table by sample",
        "gates.py",
        "        repeated = ",
        "        b_class = tl.where(b_class == -1, C - 1, b_class)\n        repeated = ",
        "bound",
        SETS,
        "y: error",
    ),
    Plant(
        "a class twice in a set counts twice",
        "gates.py",
        "tl.where((b_class == -1) | repeated,",
        "tl.where((b_class == -1),",
        "bound",
        SETS,
        "y: error",
    ),
    Plant(
        "no gates in the prologue",
        "linear.py",
        "b_a = (b_a * b_s).to(b_a.dtype)",
        "b_a = b_a",
        "bound",
        MANY,
        "y: error",
    ),
    Plant("bias inside the gate", "linear.py", "GATE_BIAS=gate_bias,", "GATE_BIAS=True,", "bound", PAIRS, "y: error"),
    Plant(
        "bias outside of the gate",
        "conv2d.py",
        "GATE_BIAS=gate_bias,",
        "GATE_BIAS=False,",
        "bound",
        CONV,
        "y: error",
    ),
    Plant("bias inside of lines added outside", "output.py", ADDED, NOT_ADDED, "bound", CONV_LINES, "y: error"),
    Plant("bias inside of rows added outside", "output.py", ADDED, NOT_ADDED, "bound", CONV_ROWS, "y: error"),
    Plant(
        "no mask of the last step",
        "linear.py",
        "m_k = o_k < K - i_k",
        "m_k = o_k < K",
        "bound",
        MANY,
        "(y: error|[a-z_]+ has NaN)",
    ),
    Plant(
        "no last step",
        "linear.py",
        "for i_k in range(0, K, BLOCK_K):",
        "for i_k in range(0, K - BLOCK_K, BLOCK_K):",
        "bound",
        MANY,
        "y: error",
    ),
    # What lies above an image is another's, or anything.
    Plant("taps above the image read it", "conv2d.py", " & (o_y >= 0)", "", "bound", CONV, "y(: error| has NaN)"),
    Plant("the image's columns by H", "conv2d.py", "(o_x < W)", "(o_x < H)", "bound", CONV, "y: error"),
    Plant(
        "no mask of the columns stored",
        "linear.py",
        MASK_Y,
        "m_y = m_m[:, None] & (o_n >= 0)[None, :]",
        "guard",
        MANY,
        "outside",
    ),
    Plant(
        "no mask of the rows stored",
        "conv2d.py",
        MASK_Y,
        "m_y = (o_m >= 0)[:, None] & m_n[None, :]",
        "guard",
        CONV,
        "outside",
    ),
    Plant(
        "no mask of the channels stored",
        "output.py",
        MASK_ROWS,
        MASK_ROWS.replace("m_k[", "(o_k >= 0)["),
        "guard",
        ROWS,
        "outside",
    ),
    Plant(
        "no mask of the lines' ends",
        "output.py",
        "m = m_l[:, None] & (o_i < INNER)[None, :]",
        "m = m_l[:, None] & (o_i >= 0)[None, :]",
        "guard",
        LINES,
        "outside",
    ),
    Plant(
        "no mask of the rows read",
        "linear.py",
        LOAD_A,
        LOAD_A.replace("m_m[:, None] & ", ""),
        "reads",
        MANY,
        "strays: load",
    ),
    Plant(
        "no mask of the table's columns",
        "gates.py",
        "mask=m_row & m_k, other",
        "mask=m_row, other",
        "reads",
        SETS,
        "strays: load",
    ),
    Plant(
        "no last chunk of the sums",
        "sums.py",
        "for i_p in range(P):",
        "for i_p in range(P - 1):",
        "bound",
        ROWS,
        "dmemory: error",
    ),
    Plant(
        "no last split of the samples",
        "sums.py",
        "for i_split in range(SPLITS):",
        "for i_split in range(SPLITS - 1):",
        "bound",
        Case("modulate_output", (70, 9), classes=4),
        "dmemory: error",
    ),
    Plant(
        "sums over the samples of the next class",
        "sums.py",
        "(b_classes == i_c)",
        "(b_classes == i_c + 1)",
        "bound",
        ROWS,
        "dmemory: error",
    ),
    Plant(
        "sums over the samples of every class",
        "sums.py",
        "(b_classes == i_c)",
        "(b_classes >= 0)",
        "zero",
        ONE_CLASS,
        "unselected",
    ),
    Plant(
        "a row of outputs never written",
        "linear.py",
        STORE_Y,
        STORE_Y.replace("m_y)", "m_y & (o_m != 7)[:, None])"),
        "bound",
        MANY,
        "y has NaN",
    ),
    Plant(
        "an element of the tail never written",
        "output.py",
        "tl.store(y + o, b_y.to(y.dtype.element_ty), mask=m)",
        "tl.store(y + o, b_y.to(y.dtype.element_ty), mask=m & (o != 7))",
        "bound",
        ROWS,
        "y has NaN",
        2,
    ),
    Plant(
        "a group of tiles without its last",
        "linear.py",
        "group = min(tiles_m - i_group * GROUP_M, GROUP_M)",
        "group = GROUP_M",
        "bound",
        Case("modulated_linear", (5, 14, 33, 70), classes=4),
        "y has NaN",
    ),
)
PLANTS = LINTED + RUN
