"""What the kernels cost, counted where Triton's interpreter runs them: bytes moved, operations done, and the traffic
that a second-level cache leaves for the memory behind it. `python -m tests.triton.cost` prints the table."""

from __future__ import annotations

import os
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from memmod.ops import dispatch
from memmod.ops.calls import OutputCall, OutputGradCall

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_interpreter = [
    pytest.mark.interpreter,
    pytest.mark.skipif(not INTERPRETED, reason="TRITON_INTERPRET=1 was not set before Python started"),
]
LINE = 128
"""Bytes of a line of the cache; tensors on a GPU start at one."""


class Access(NamedTuple):
    """One load or store of one program."""

    program: tuple[int, int, int]
    step: int
    """products that the program has done before"""
    name: str
    """the argument whose memory it is"""
    store: bool
    elements: np.ndarray
    """which of the argument's elements, in the order of its storage"""
    itemsize: int


class Launch:
    """One kernel's run: its tensors, and everything it did."""

    def __init__(self, kernel: str, arguments: dict[str, Any]):
        self.kernel = kernel
        self.tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
        self.accesses: list[Access] = []
        self.dots: dict[tuple[int, int, int], int] = defaultdict(int)
        self.operations = 0
        self.strays: list[str] = []
        """accesses outside of every argument"""

    def access(self, program: tuple[int, int, int], addresses: np.ndarray, store: bool) -> None:
        if addresses.size == 0:
            return
        # A pass in place has one tensor under two names: it loads the first and stores the last.
        names = list(self.tensors)
        for name in reversed(names) if store else names:
            tensor = self.tensors[name]
            offsets = addresses.astype(np.int64) - tensor.data_ptr()
            inside = (offsets >= 0) & (offsets < _span(tensor))
            if inside.any():
                if not inside.all():
                    break
                elements = offsets // tensor.itemsize
                self.accesses.append(Access(program, self.dots[program], name, store, elements, tensor.itemsize))
                return
        self.strays.append(f"{'store' if store else 'load'} of {self.kernel}, program {program}, beyond its argument")

    def dot(self, program: tuple[int, int, int], m: int, n: int, k: int) -> None:
        self.dots[program] += 1
        self.operations += 2 * m * n * k

    def times(self, name: str, store: bool) -> np.ndarray:
        """How often each element of an argument is read (or written)."""
        counts = np.zeros(_span(self.tensors[name]) // self.tensors[name].itemsize, dtype=np.int64)
        for access in self.accesses:
            if access.name == name and access.store == store:
                np.add.at(counts, access.elements, 1)
        return counts

    def moved(self, name: str | None = None) -> int:
        """Bytes that programs ask for, of one argument or of all."""
        return sum(a.elements.size * a.itemsize for a in self.accesses if name in (None, a.name))


def _span(tensor: Tensor) -> int:
    """Bytes from a tensor's first element to behind its last."""
    if tensor.numel() == 0:
        return 0
    return (1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))) * tensor.itemsize


@contextmanager
def record() -> Iterator[list[Launch]]:
    """The launches of the `with` block. The interpreter runs unmasked loads and stores as masked ones too."""
    from triton.runtime.interpreter import InterpretedFunction, interpreter_builder

    launches: list[Launch] = []
    run, load = InterpretedFunction.run, interpreter_builder.create_masked_load
    store, dot = interpreter_builder.create_masked_store, interpreter_builder.create_dot

    def recorded_run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        launches.append(Launch(self.__name__, dict(zip(self.arg_names, args, strict=False)) | kwargs))
        return run(self, *args, grid=grid, warmup=warmup, **kwargs)

    def touched(pointers: Any, mask: Any) -> np.ndarray:
        addresses, active = np.broadcast_arrays(pointers.data, mask.data)
        # Some masks are integers 0 and 1.
        return addresses[active.astype(bool)]

    def recorded_load(pointers: Any, mask: Any, *rest: Any) -> Any:
        launches[-1].access(interpreter_builder.grid_idx, touched(pointers, mask), store=False)
        return load(pointers, mask, *rest)

    def recorded_store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        launches[-1].access(interpreter_builder.grid_idx, touched(pointers, mask), store=True)
        return store(pointers, value, mask, *rest)

    def recorded_dot(a: Any, b: Any, *rest: Any) -> Any:
        launches[-1].dot(interpreter_builder.grid_idx, a.data.shape[0], b.data.shape[1], a.data.shape[1])
        return dot(a, b, *rest)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(InterpretedFunction, "run", recorded_run))
        for name, wrapper in (
            ("create_masked_load", recorded_load),
            ("create_masked_store", recorded_store),
            ("create_dot", recorded_dot),
        ):
            stack.enter_context(mock.patch.object(interpreter_builder, name, wrapper))
        yield launches


def traffic(launch: Launch, capacity: int) -> dict[str, int]:
    """Bytes between a cache of `capacity` bytes and the memory behind it, by argument.

    The cache holds whole lines and gives up the one not used for the longest time; a stored line is in it until it is
    given up, and is written then. It has two halves, as on A100 and H100, each for half of the programs: a line that is
    read takes room in both, for nearly all are read by programs of both; one that is written is in one. All programs
    run at once and in step: the accesses before each one's first product, then those before its second, and so on, as
    persistent programs of equal work do.
    """
    order = sorted(launch.accesses, key=lambda access: (access.step, access.program))
    lines: OrderedDict[tuple[str, int], int] = OrderedDict()
    missed: dict[str, int] = defaultdict(int)
    held = 0
    for access in order:
        for line in np.unique(access.elements * access.itemsize // LINE).tolist():
            key = (access.name, line)
            if key in lines:
                lines.move_to_end(key)
                continue
            lines[key] = LINE if access.store else 2 * LINE
            missed[access.name] += LINE
            held += lines[key]
            while held > capacity:
                held -= lines.popitem(last=False)[1]
    return dict(missed)


def floor(launch: Launch, names: Sequence[str]) -> int:
    """Bytes of the named arguments: each read or written once."""
    return sum(_span(launch.tensors[name]) for name in names)


class Count(NamedTuple):
    """A row of the table."""

    name: str
    launches: list[Launch]
    main: Launch
    """the launch that streams"""
    streamed: tuple[str, ...]
    """its large arguments"""
    moved: int
    """bytes of them between cache and memory"""
    operations: int = 0
    """that the result needs: 2·M·N·K"""

    @property
    def floor(self) -> int:
        return floor(self.main, self.streamed)

    @property
    def ratio(self) -> float:
        return self.moved / self.floor

    @property
    def apart(self) -> float:
        """Bytes that all launches ask for besides, over those asked for of the large ones: gates, indices, sums."""
        large = sum(self.main.moved(name) for name in self.streamed)
        return sum(launch.moved() for launch in self.launches) / large - 1

    @property
    def overhead(self) -> float:
        """Operations done over those needed."""
        return self.main.operations / self.operations if self.operations else 1.0


def randn(*shape: int, dtype: torch.dtype = torch.float16, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


SAMPLES, HEIGHT, WIDTH, CLASSES = 32, 197, 256, 10
"""Of the tails: a transformer's tokens."""


def _index(samples: int) -> Tensor:
    return torch.where(torch.arange(samples) % 3 == 1, -1, torch.arange(samples) % CLASSES)


@contextmanager
def _blocks_of_h100() -> Iterator[None]:
    """The tails run with the blocks that H100 gets; the interpreter's own are smaller."""
    from memmod.kernels import output, sums

    with ExitStack() as stack:
        for module in (output, sums):
            stack.enter_context(mock.patch.object(module, "architecture", lambda device: 90))
        yield


def tail_forward(shape: Sequence[int] = (SAMPLES, HEIGHT, WIDTH), dim: int = -1) -> Count:
    """modulate_output: x read once, y written once."""
    forward = dispatch.kernel("modulate_output", "triton").run
    x, memory = randn(*shape), randn(CLASSES, shape[dim], dtype=torch.float32, seed=1)
    with _blocks_of_h100(), record() as launches:
        forward(OutputCall(x, memory, _index(shape[0]), dim, "sigmoid", False))
    return _tail("modulate_output", shape, launches, ("x", "y"))


def tail_backward(shape: Sequence[int] = (SAMPLES, HEIGHT, WIDTH), dim: int = -1) -> Count:
    """modulate_output's backward with the memory's gradient: dy and y read once, dx written once."""
    backward = dispatch.kernel("modulate_output_backward", "triton").run
    dy, saved = randn(*shape), randn(*shape, seed=2)
    memory = randn(CLASSES, shape[dim], dtype=torch.float32, seed=1)
    with _blocks_of_h100(), record() as launches:
        backward(OutputGradCall(dy, saved, memory, _index(shape[0]), dim, "sigmoid", (True, True)))
    return _tail("modulate_output backward", shape, launches, ("x", "other", "y"))


def _tail(name: str, shape: Sequence[int], launches: list[Launch], streamed: tuple[str, ...]) -> Count:
    main = next(launch for launch in launches if launch.kernel.startswith("modulate_"))
    # One pass, so a cache changes nothing: what is asked for is what moves.
    moved = sum(main.moved(n) for n in streamed)
    return Count(f"{name} {'x'.join(map(str, shape))}", launches, main, streamed, moved)


# 8 samples of 197 rows; tiles of 64 x 64 in steps of 64, in groups of 2 tiles of rows.
ROWS, INNER, UNITS, PROGRAMS = 8 * HEIGHT, 256, 256, 17
PRODUCT = (64, 64, 64, 2, 4, 1)
# H100's cache has 50 MB, 6 times the largest square weight of the fused path, 2048 x 2048 in bf16. 264 programs with
# 16 tiles of columns work on 16.5 panels of 128 rows: of a and of y about as many bytes as the weight has. Here 17
# programs with 4 tiles of columns work on 4.25 panels of 64 rows, again about as many bytes as the weight, and the
# cache holds 6 weights; groups of 2 tiles of rows are to 4.25 panels what groups of 8 are to 16.5. The model has no
# room to spare: in nine tenths of this cache the weight comes again for every few groups (1.21 of the floor), and of a
# weight with 4 times the units 2.5 of the floor move.
PRODUCT_CACHE = 6 * INNER * UNITS * 2


@contextmanager
def _at_once(module: Any, programs: int) -> Iterator[None]:
    with mock.patch.object(module, "programs", lambda device, config: programs):
        yield


def product(
    b_columns: bool = True,
    *,
    height: int = HEIGHT,
    group_m: int = 2,
    capacity: int = PRODUCT_CACHE,
    programs: int = PROGRAMS,
    gates: str = "",
) -> Count:
    """modulated_matmul_kernel as the forward calls it (b_columns), or as dx does; gates: "in", "out" or "in+out"."""
    from memmod.kernels import linear
    from memmod.kernels.configs import MatmulConfig
    from memmod.kernels.gates import gate_table

    a, b = randn(ROWS, INNER), randn(UNITS, INNER) if b_columns else randn(INNER, UNITS)
    y = a.new_empty(ROWS, UNITS)
    index = _index(ROWS // height)
    tables = [
        gate_table(randn(CLASSES, width, dtype=torch.float32, seed=3), index, "sigmoid") if side in gates else None
        for side, width in (("in", INNER), ("out", UNITS))
    ]
    config = MatmulConfig(*PRODUCT)._replace(group_m=group_m)
    with _at_once(linear, programs), record() as launches:
        linear.matmul(a, b, y, b_columns=b_columns, in_gates=tables[0], out_gates=tables[1], config=config)
    (main,) = launches
    moved = sum(traffic(main, capacity)[name] for name in "aby")
    name = "modulated_linear" if b_columns else "modulated_linear dx"
    operations = 2 * ROWS * INNER * UNITS
    return Count(f"{name} {ROWS}x{INNER}x{UNITS} {gates}".strip(), launches, main, ("a", "b", "y"), moved, operations)


IMAGES, SIDE, CHANNELS, FILTERS = 4, 28, 32, 64
CONVOLUTION = (64, 64, 32, 8, 4, 1)
# 264 programs of 128 pixels with 64 channels in and out work on 4.3 MB of x and of y each: with x in both halves a
# quarter of H100's 50 MB. Here 17 programs of 64 pixels, and a cache of twice what they work on beside the weight:
# too little for all of x and y.
CONVOLUTION_CACHE = 2 * 9 * CHANNELS * FILTERS * 2 + 2 * PROGRAMS * 64 * (2 * CHANNELS + FILTERS) * 2


def convolution(*, capacity: int = CONVOLUTION_CACHE, programs: int = PROGRAMS, gates: str = "") -> Count:
    """modulated_conv2d_kernel, 3 x 3 with padding 1: nine taps read x, and the cache has to serve eight of them."""
    from memmod.kernels import conv2d
    from memmod.kernels.configs import MatmulConfig
    from memmod.kernels.gates import gate_table

    x = randn(IMAGES, CHANNELS, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    weight = randn(FILTERS, 3, 3, CHANNELS, seed=1)
    table = None
    if "in" in gates:
        table = gate_table(randn(CLASSES, CHANNELS, dtype=torch.float32, seed=3), _index(IMAGES), "sigmoid")
    options = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    with _at_once(conv2d, programs), record() as launches:
        conv2d.conv2d(x, weight, (SIDE, SIDE), **options, in_gates=table, config=MatmulConfig(*CONVOLUTION))
    (main,) = launches
    moved = sum(traffic(main, capacity)[name] for name in ("x", "weight", "y"))
    operations = 2 * IMAGES * SIDE * SIDE * 9 * CHANNELS * FILTERS
    name = f"modulated_conv2d 3x3 {IMAGES}x{CHANNELS}x{SIDE}x{SIDE} to {FILTERS} {gates}".strip()
    return Count(name, launches, main, ("x", "weight", "y"), moved, operations)


LINES = (SAMPLES, 64, 14, 14)
COUNTED: tuple[Callable[[], Count], ...] = (
    tail_forward,
    tail_backward,
    lambda: tail_forward(LINES, 1),
    lambda: tail_backward(LINES, 1),
    product,
    lambda: product(gates="in+out"),
    lambda: product(False),
    lambda: product(False, gates="in+out"),
    convolution,
    lambda: convolution(gates="in"),
)


def main() -> None:
    if not INTERPRETED:
        sys.exit("set TRITON_INTERPRET=1: the counts come from Triton's interpreter")
    print("| call | bytes | floor | ratio | gates, indices, sums | operations | over 2MNK |")
    print("|---|---|---|---|---|---|---|")
    for count in map(lambda call: call(), COUNTED):
        over = f"{count.overhead:.3f}" if count.operations else "-"
        print(
            f"| {count.name} | {count.moved:,} | {count.floor:,} | {count.ratio:.3f} "
            f"| {count.apart:.1%} | {count.main.operations:,} | {over} |"
        )


if __name__ == "__main__":
    main()
