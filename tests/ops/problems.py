"""Problems that every backend must solve: inputs of one op call, drawn from a table of cases."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memmod.ops import dispatch
from memmod.ops.backends.cuda import register as cuda_kernels
from memmod.ops.backends.triton import register as triton_kernels
from memmod.ops.calls import CALLS

FLOATS = ("x", "weight", "bias", "memory", "input_memory", "dy")


@dataclasses.dataclass(frozen=True)
class Problem:
    """One call of an op and of its backward."""

    op: str
    x: Tensor
    memory: Tensor | None
    index: Tensor
    dy: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    input_memory: Tensor | None = None
    gate: str = "sigmoid"
    gate_bias: bool = True
    keep_gated: bool = False
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    dim: int = 1

    def map(self, fn: Callable[[Tensor], Tensor]) -> Problem:
        """The same problem with `fn` applied to every floating tensor."""
        return dataclasses.replace(self, **{n: fn(t) for n in FLOATS if (t := getattr(self, n)) is not None})

    def to(self, device: str) -> Problem:
        """The same problem on another device, every tensor with the strides that it has here."""
        return self.map(lambda t: place(t, device)).replace(index=place(self.index, device))

    def replace(self, **changes: Any) -> Problem:
        return dataclasses.replace(self, **changes)

    @property
    def learnable(self) -> tuple[str, ...]:
        """The names of the tensors that have a gradient, in the order of the op's `needs`."""
        if self.op == "modulate_output":
            return ("x", "memory")
        return ("x", "weight", "bias", "memory", "input_memory")

    @property
    def args(self) -> tuple[Any, ...]:
        """The op's arguments in the order of its schema."""
        if self.op == "modulate_output":
            return (self.x, self.memory, self.index, self.dim, self.gate, self.keep_gated)
        args = (self.x, self.weight, self.bias, self.memory, self.input_memory, self.index)
        args += (self.gate, self.gate_bias, self.keep_gated)
        if self.op == "modulated_conv2d":
            args += (list(self.stride), list(self.padding), list(self.dilation), self.groups)
        return args

    @property
    def call(self) -> tuple:
        """The same as the call that backends take."""
        return CALLS[self.op](*self.args)


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table: everything about a problem but its random numbers."""

    op: str
    shape: tuple[int, ...]
    pattern: str = "mixed"
    classes: int = 7
    rows_per_sample: int = 1
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    dy_layout: str = "contiguous"
    granularity: str = "unit"
    gate: str = "sigmoid"
    gate_bias: bool = True
    bias: bool = True
    keep_gated: bool = False
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        parts = [self.op, "x".join(map(str, self.shape))]
        for field in dataclasses.fields(self)[2:]:
            value = getattr(self, field.name)
            if value != field.default:
                text = "-".join(f"{k}{v}" for k, v in value) if field.name == "options" else str(value)
                parts.append(text.removeprefix("torch.") if field.name == "dtype" else f"{field.name}={text}")
        return ",".join(parts)

    @property
    def size(self) -> int:
        """Multiplications of the layer's product, or the numbers that the tail modulates."""
        if self.op == "modulated_conv2d":
            rows, inputs, height, width, units, kernel = self.shape
            return rows * height * width * units * inputs // dict(self.options).get("groups", 1) * kernel * kernel
        return math.prod(self.shape)

    def draw(self, seed: int = 0) -> Problem:
        """Random inputs of this case, where the forced backend runs; the same seed gives the same ones."""
        return _DRAW[self.op](self, torch.Generator().manual_seed(seed)).to(device_of(dispatch.get_backend()))


def device_of(backend: str | None) -> str:
    """Where the tests run a backend: GPU kernels on the GPU, unless something executes them on the CPU."""
    device = {"triton": "cpu" if triton_kernels.interpreted() else "cuda", "cuda": cuda_kernels.device_type()}
    return device.get(backend, "cpu") if torch.cuda.is_available() else "cpu"


def place(t: Tensor, device: str) -> Tensor:
    """t on `device` with its own strides, whatever it shares or leaves out."""
    if t.device.type == device or t.numel() == 0:
        return t.to(device)
    whole = t.as_strided((t.untyped_storage().nbytes() // t.element_size(),), (1,), 0)
    return whole.to(device).as_strided(t.shape, t.stride(), t.storage_offset())


def select(pattern: str, samples: int, classes: int, g: torch.Generator) -> Tensor:
    """An index of the named class pattern."""

    def draw(*shape: int, low: int = -1) -> Tensor:
        return torch.randint(low, classes, shape, generator=g)

    patterns: dict[str, Callable[[], Tensor]] = {
        "nothing": lambda: torch.full((samples,), -1),
        "mixed": lambda: torch.where(torch.arange(samples) % 3 == 1, -1, draw(samples, low=0)),
        "one": lambda: torch.full((samples,), classes - 1),
        "distinct": lambda: torch.randperm(classes, generator=g)[:samples],
        "skewed": lambda: torch.where(torch.rand(samples, generator=g) < 0.8, 0, draw(samples)),
        "sets": lambda: draw(samples, 3),
        "repeated": lambda: draw(samples, 1, low=0).expand(samples, 4).contiguous(),
        "pairs of equals": lambda: draw(samples, 2).repeat(1, 2),
        "empty sets": lambda: torch.empty(samples, 0, dtype=torch.int64),
        "whole batch": lambda: draw(1, low=0),
        "whole batch set": lambda: draw(1, 3, low=0),
        "strided": lambda: draw(samples, 2)[:, 0],
        "expanded": lambda: draw(1, low=0).expand(samples),
    }
    return patterns[pattern]()


PATTERNS = (
    "nothing",
    "mixed",
    "one",
    "distinct",
    "skewed",
    "sets",
    "repeated",
    "pairs of equals",
    "empty sets",
    "whole batch",
    "whole batch set",
    "strided",
    "expanded",
)


def lay_out(t: Tensor, layout: str) -> Tensor:
    """t's numbers in another memory layout ("expanded": the first row's numbers in all rows)."""
    if layout == "contiguous" or t.numel() == 0:
        return t
    if layout == "transposed":
        return t.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided":
        wide = torch.full((*t.shape[:-1], 2 * t.shape[-1]), float("nan"), dtype=t.dtype)
        wide[..., ::2] = t
        return wide[..., ::2]
    if layout == "expanded":
        return t[:1].expand(t.shape)
    if layout == "one number":
        return t.flatten()[0].expand(t.shape)
    return t.contiguous(memory_format=torch.channels_last)


def _memory(case: Case, width: int, g: torch.Generator) -> Tensor:
    memory = torch.randn(case.classes, width, generator=g)
    kind = torch.rand(case.classes, width, generator=g)
    # A sigmoid gate of exactly 0 and exactly 1.
    closed, opened = (0.0, 1.0) if case.gate == "identity" else (-1000.0, 1000.0)
    return memory.masked_fill(kind < 0.1, closed).masked_fill(kind > 0.9, opened)


def _shared(case: Case, g: torch.Generator, rows: int, units: int, inputs: int) -> dict[str, Any]:
    samples = rows // case.rows_per_sample
    return {
        "memory": _memory(case, units, g) if case.granularity != "input" else None,
        "input_memory": _memory(case, inputs, g) if case.granularity != "unit" else None,
        "index": select(case.pattern, samples, case.classes, g),
        "bias": torch.randn(units, generator=g).to(case.dtype) if case.bias else None,
        "gate": case.gate,
        "gate_bias": case.gate_bias,
        "keep_gated": case.keep_gated or case.gate == "identity" or (case.bias and not case.gate_bias),
        **dict(case.options),
    }


def _draw_linear(case: Case, g: torch.Generator) -> Problem:
    *lead, inputs, units = case.shape
    x = torch.randn(*lead, inputs, generator=g).to(case.dtype)
    dy = torch.randn(*lead, units, generator=g).to(case.dtype)
    return Problem(
        op=case.op,
        x=lay_out(x, case.layout),
        dy=lay_out(dy, case.dy_layout),
        weight=(torch.randn(units, inputs, generator=g) / max(1, inputs) ** 0.5).to(case.dtype),
        **_shared(case, g, lead[0], units, inputs),
    )


def _draw_conv(case: Case, g: torch.Generator) -> Problem:
    rows, inputs, height, width, units, kernel = case.shape
    options = dict(case.options)
    groups = options.get("groups", 1)
    x = torch.randn(rows, inputs, height, width, generator=g).to(case.dtype)
    weight = torch.randn(units, inputs // groups, kernel, options.pop("kernel_width", kernel), generator=g)
    weight = (weight / max(1, weight[0].numel()) ** 0.5).to(case.dtype)
    case = dataclasses.replace(case, options=tuple(options.items()))
    shared = _shared(case, g, rows, units, inputs)
    problem = Problem(op=case.op, x=x, dy=x, weight=weight, **shared)
    y = torch.conv2d(x, weight, None, problem.stride, problem.padding, problem.dilation, problem.groups)
    dy = torch.randn(y.shape, generator=g).to(case.dtype)
    return problem.replace(
        x=lay_out(x, case.layout.removeprefix("weights ")),
        weight=lay_out(weight, "channels_last") if "weights" in case.layout else weight,
        dy=lay_out(dy, case.dy_layout),
    )


def _draw_output(case: Case, g: torch.Generator) -> Problem:
    dim = dict(case.options).get("dim", 1)
    x = torch.randn(case.shape, generator=g).to(case.dtype)
    dy = torch.randn(case.shape, generator=g).to(case.dtype)
    shared = _shared(case, g, case.shape[0], case.shape[dim], 0)
    for unused in ("bias", "input_memory", "gate_bias"):
        del shared[unused]
    shared["keep_gated"] = case.keep_gated
    return Problem(op=case.op, x=lay_out(x, case.layout), dy=lay_out(dy, case.dy_layout), **shared)


_DRAW = {"modulated_linear": _draw_linear, "modulated_conv2d": _draw_conv, "modulate_output": _draw_output}
