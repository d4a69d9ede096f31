"""What is compiled ahead of time: every kernel in every configuration, as the host functions launch it.

A form is a kernel and what it is given; a group is a form for one architecture and type, with a launch for each of its
configurations. The launches are recorded from the host functions, with tensors that hold nothing and friendly sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memmod.kernels import conv2d, gates, linear, output, sums
from memmod.kernels.configs import MATMUL, class_sums_config, line_config, row_config
from tests.triton.aot import Expected, Facts, Launch, inspected, problems, recording

ARCHITECTURES = (80, 90, 100)
# The one whose code `make test` inspects, of Triton kernels in bf16; `make test-all` has all others.
FIRST = 90
# By the name of a product's arithmetic: an fp32 product is three products in TF32, or one where the user allows it.
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "tf32": torch.float32}
SAMPLES, CLASSES = 64, 10
# Rows of a sample: more than any tile is tall, so that a tile touches two samples at most; and fewer.
TALL, LOW = 197, 8
SIZES = [2**n for n in range(15)]
# Triton knows of a number whether 16 divides it: narrower rows cannot be read 16 bytes at a time.
ALIGNED = 16


class Compilation(NamedTuple):
    """One launch of a group."""

    config: str
    launch: Launch
    expected: Expected


class Form(NamedTuple):
    """A kernel and what it is given."""

    kernel: str
    name: str
    types: tuple[str, ...]
    record: Callable[[int, torch.dtype], None]
    """Launches it in every configuration of an architecture and type"""
    expect: Callable[[Launch], Expected]
    every: Callable[[int, str], bool] = lambda arch, kind: True
    """Whether an architecture and type compile every configuration, or only the extreme ones"""


class Group(NamedTuple):
    form: Form
    arch: int
    kind: str

    def __str__(self) -> str:
        return f"{self.form.kernel}, {self.form.name}, sm_{self.arch}, {self.kind}".replace(" ", "-").replace(",", "")

    def compilations(self) -> list[Compilation]:
        with recording(self.arch, "tf32" if self.kind == "tf32" else "tf32x3") as launches:
            self.form.record(self.arch, TYPES[self.kind])
        wanted = f"{self.form.kernel}_kernel"
        found = {description(x): x for x in launches if x.kernel.fn.__name__ == wanted}
        if not self.form.every(self.arch, self.kind):
            found = extremes(found)
        return [Compilation(name, launch, self.form.expect(launch)) for name, launch in sorted(found.items())]


def facts(compilations: Sequence[Compilation], arch: int) -> list[Facts]:
    return inspected([compilation.launch for compilation in compilations], arch)


def wrong(compilations: Sequence[Compilation], found: Sequence[Facts], arch: int) -> list[str]:
    """Everything that is wrong with a group's kernels."""
    return [
        f"{compilation.config}: {problem}"
        for compilation, one in zip(compilations, found, strict=True)
        for problem in problems(one, compilation.expected, arch)
    ]


def numbers(launch: Launch) -> dict[str, int]:
    """A launch's configuration: its constants that are sizes, and Triton's options."""
    sizes = {k: v for k, v in launch.constants().items() if k.startswith(("BLOCK", "GROUP", "CHUNK", "SPLIT"))}
    return sizes | launch.options


def description(launch: Launch) -> str:
    """Its numbers as text: "128x64x32, 8 warps, 3 stages", "1x32x128, chunk 64"."""
    sizes = numbers(launch)
    text = "x".join(str(value) for name, value in sizes.items() if name.startswith("BLOCK"))
    text += "".join(f", {name.lower()} {sizes[name]}" for name in ("CHUNK", "SPLIT") if name in sizes)
    return text + "".join(f", {value} {name[4:]}" for name, value in launch.options.items() if "num_stages" in sizes)


def extremes(found: dict[str, Launch]) -> dict[str, Launch]:
    """Those with the largest and the smallest of each number, the first and the last of each."""
    kept: dict[str, Launch] = {}
    ordered = sorted(found.items(), key=lambda item: list(numbers(item[1]).values()))
    for name in numbers(ordered[0][1]):
        values = [numbers(launch)[name] for _, launch in ordered]
        for value in (min(values), max(values)):
            having = [item for item in ordered if numbers(item[1])[name] == value]
            kept.update((having[0], having[-1]))
    return kept


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def table(width: int, samples: int = SAMPLES) -> gates.GateTable:
    return gates.GateTable(empty(CLASSES, width), empty(samples, dtype=torch.int64), samples)


def bytes16(elements: int, launch: Launch, name: str) -> int:
    """Accesses of 16 bytes a thread for that many elements of an argument."""
    return elements * launch.arguments[name].dtype.itemsize // (32 * launch.warps * 16)


def product(arch: int, dtype: torch.dtype, height: int, columns: bool, **options: Any) -> None:
    inner, units = 256, 512
    b = empty(units, inner, dtype=dtype) if columns else empty(inner, units, dtype=dtype)
    named = {"in_gates": table(inner), "out_gates": table(units)}
    for config in MATMUL[arch, dtype.itemsize]:
        rows = SAMPLES * height
        bias = empty(units, dtype=dtype) if options.get("bias") else None
        given = options | {"bias": bias} | {name: named[name] for name in named if options.get(name)}
        a, y = empty(rows, inner, dtype=dtype), empty(rows, units, dtype=dtype)
        linear.matmul(a, b, y, b_columns=columns, config=config, **given)


def convolution(arch: int, dtype: torch.dtype, size: tuple[int, int], stride: int, **options: Any) -> None:
    inputs, units = 64, 128
    named = {"in_gates": table(inputs), "out_gates": table(units)}
    height, width = (side * stride for side in size)
    for config in MATMUL[arch, dtype.itemsize]:
        x = empty(SAMPLES, inputs, height, width, dtype=dtype).contiguous(memory_format=torch.channels_last)
        bias = empty(units, dtype=dtype) if options.get("bias") else None
        given = options | {"bias": bias} | {name: named[name] for name in named if options.get(name)}
        geometry = {"stride": (stride, stride), "padding": (1, 1), "dilation": (1, 1)}
        conv2d.conv2d(x, empty(units, 3, 3, inputs, dtype=dtype), size, config=config, **geometry, **given)


def expect_product(launch: Launch) -> Expected:
    """Tensor cores; both operands in 16 bytes, for every stage; y, and what is saved, too."""
    c = launch.constants()
    a = next(name for name in ("a", "x") if name in launch.arguments)
    operands = c["BLOCK_M"] * c["BLOCK_K"] + c["BLOCK_K"] * c["BLOCK_N"]
    outputs = sum(launch.arguments[name] is not None for name in ("y", "saved"))
    if c["PRECISION"] == "tf32" and launch.arguments[a].dtype is torch.float32 and not c.get("B_COLUMNS", True):
        # Tensor cores from sm_90 on take TF32 operands with K innermost only: b is turned by copies of 4 bytes.
        operands = c["BLOCK_M"] * c["BLOCK_K"]
    return Expected(
        tensor_cores=True,
        wide_loads=bytes16(operands, launch, a) * launch.stages,
        wide_stores=bytes16(c["BLOCK_M"] * c["BLOCK_N"], launch, "y") * outputs,
    )


def tail(width: int, inner: int, height: int, dtype: torch.dtype, **given: bool) -> None:
    """One pass over ``[samples, height, width, inner]``."""
    view = output.Channels(SAMPLES * height, width, inner, False)
    x = empty(SAMPLES, height, width, inner, dtype=dtype)
    bias = empty(width, dtype=dtype) if given.get("bias") else None
    other, out = x if given.get("other") else None, x if given.get("out", True) else None
    options = {"other": other, "bias": bias, "out": out, "with_sums": given.get("with_sums", False)}
    options["bias_inside"] = given.get("bias_inside", False)
    output.launch(x, view, table(width), samples=SAMPLES, **options)


def rows(arch: int, dtype: torch.dtype, **given: bool) -> None:
    with_sums = given.get("with_sums", False)
    shapes = {row_config(t, k, dtype, arch, with_sums): (k, 1, t) for t in SIZES for k in SIZES}
    for shape in shapes.values():
        tail(*shape, dtype, **given)


def lines(arch: int, dtype: torch.dtype, **given: bool) -> None:
    # One number a line is the business of the other kernel.
    shapes = {line_config(inner, arch): (48, inner, 1) for inner in SIZES if inner > 1}
    for shape in shapes.values():
        tail(*shape, dtype, **given)


def expect_tail(launch: Launch) -> Expected:
    c = launch.constants()
    if launch.arguments["K" if "BLOCK_K" in c else "INNER"] % ALIGNED:
        return Expected()
    elements = math.prod(value for name, value in c.items() if name.startswith("BLOCK"))
    inputs = sum(launch.arguments[name] is not None for name in ("x", "other"))
    outputs = launch.arguments["y"] is not None
    return Expected(
        wide_loads=bytes16(elements, launch, "x") * inputs, wide_stores=bytes16(elements, launch, "x") * outputs
    )


def class_sums(arch: int, dtype: torch.dtype, with_b: bool, gate: str, sets: int) -> None:
    # More samples than a split has: one split alone would be a constant to the compiler.
    parts, samples = 4, 2 * 4096
    every = [(c, k) for c in (1, 1000) for k in SIZES]
    shapes = {class_sums_config(*shape, arch): shape for shape in every}
    for classes, width in shapes.values():
        a = empty(samples, parts, width, dtype=dtype)
        index = empty(samples, *[sets] * (sets > 1), dtype=torch.int64)
        sums.class_sums(a, a if with_b else None, empty(classes, width), index, gate)


def tables(arch: int, dtype: torch.dtype) -> None:
    gates.gate_table(empty(CLASSES, 256), empty(SAMPLES, dtype=torch.int64), "sigmoid")
    gates.gate_table(empty(CLASSES, 256), empty(SAMPLES, 3, dtype=torch.int64), "sigmoid")


def expect_nothing(launch: Launch) -> Expected:
    """Small beside any layer's operands: read by narrow accesses, where a thread has few numbers."""
    return Expected()


def _forms() -> Iterable[Form]:
    every, plain, single = ("bf16", "fp16", "fp32", "tf32"), ("bf16", "fp16", "fp32"), ("fp32",)
    products = {
        "forward, unit": {"columns": True, "bias": True, "out_gates": True},
        "forward, unit+input, saved": {
            "columns": True,
            "bias": True,
            "in_gates": True,
            "out_gates": True,
            "gate_bias": False,
            "keep": "gated",
        },
        "gradient of x": {"columns": False, "in_gates": True, "out_gates": True},
    }
    convolutions = {
        "forward, unit": {"stride": 2, "bias": True, "out_gates": True},
        "gradient of x": {"stride": 1, "in_gates": True, "out_gates": True},
    }
    # PAIR or not.
    for rows_of, height, size in (("", TALL, (14, 14)), (", low samples", LOW, (2, 4))):
        for name, given in products.items():
            record = _recorded(product, height=height, **given)
            yield Form("modulated_matmul", name + rows_of, every, record, expect_product)
        for name, given in convolutions.items():
            record = _recorded(convolution, size=size, **given)
            yield Form("modulated_conv2d", name + rows_of, every, record, expect_product)
    passes = {
        "forward": ({}, lambda arch, kind: arch == 90 and kind == "bf16"),
        "forward, bias": ({"bias": True}, lambda arch, kind: False),
        "forward, bias inside": ({"bias": True, "bias_inside": True}, lambda arch, kind: False),
        "sums": ({"out": False, "with_sums": True}, lambda arch, kind: False),
        # The most that the kernel does: here every configuration is compiled for every architecture.
        "backward": ({"other": True, "with_sums": True}, lambda arch, kind: kind != "fp16"),
    }
    for name, (given, thorough) in passes.items():
        yield Form("modulate_rows", name, plain, _recorded(rows, **given), expect_tail, thorough)
        yield Form("modulate_lines", name, plain, _recorded(lines, **given), expect_tail, thorough)
    classes = {
        "partial sums": (single, {"with_b": False, "gate": "sigmoid", "sets": 1}, lambda arch, kind: False),
        "products": (plain, {"with_b": True, "gate": "sigmoid", "sets": 1}, lambda arch, kind: False),
        "products, identity": (
            plain,
            {"with_b": True, "gate": "identity", "sets": 3},
            lambda arch, kind: kind == "bf16",
        ),
    }
    for name, (types, given, thorough) in classes.items():
        yield Form("class_sums", name, types, _recorded(class_sums, **given), expect_nothing, thorough)
    record = _recorded(class_sums, with_b=False, gate="sigmoid", sets=1)
    yield Form("memory_gradient", "sigmoid", single, record, expect_nothing)
    for kernel in ("class_table", "sample_table"):
        yield Form(kernel, "sigmoid", single, _recorded(tables), expect_nothing)


def _recorded(function: Callable[..., None], **given: Any) -> Callable[[int, torch.dtype], None]:
    return lambda arch, dtype: function(arch, dtype, **given)


FORMS = tuple(_forms())
GROUPS = [Group(form, arch, kind) for form in FORMS for arch in ARCHITECTURES for kind in form.types]
