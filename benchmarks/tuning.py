"""What `benchmarks.retune` measures, and the tables that it prints: choices from times, wherever these come from."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

from benchmarks.baselines import gate_rows, gates, random_index
from benchmarks.cases import CLASSES, DTYPES
from memmod.kernels import configs
from memmod.kernels.configs import MatmulConfig, matmul_config
from memmod.kernels.gates import gate_table
from memmod.kernels.linear import matmul
from memmod.ops.backends import gpu_policy

TOKENS = 196
WIDTH = 120
# A longer table has to be this much faster, on the mean over the buckets.
WORTH = 0.005

Step = Callable[[], "tuple[Tensor, ...]"]
# How a point's numbers are drawn: as they are, the same in fp64, or their absolute values in fp64.
GIVEN, EXACT, POSITIVE = "given", "exact", "positive"


class PathPoint(NamedTuple):
    """A forward of one layer on one path, with for each sample a class of its own; its backward has one path.

    A linear layer has `rows` rows and no `side`; a convolution `rows` pixels, in images of `side` x `side`.
    """

    threshold: str
    value: int
    rows: int
    inputs: int
    units: int
    side: int = 0
    kernel: int = 1
    dtype: str = "bf16"
    path: gpu_policy.Path | None = None

    @property
    def shape(self) -> PathPoint:
        """The layer, whatever its path."""
        return self._replace(path=None)

    def prepare(self, device: str, kind: str = GIVEN) -> Step:
        """The forward as a function that returns (y,)."""
        draw = _drawer(device, self.dtype, kind)
        if self.side:
            samples, geometry = self.rows // self.side**2, ([1, 1], [self.kernel // 2] * 2, [1, 1], 1)
            x = draw(samples, self.inputs, self.side, self.side).contiguous(memory_format=torch.channels_last)
            weight, op = draw(self.units, self.inputs, self.kernel, self.kernel), "modulated_conv2d"
        else:
            samples, geometry = self.rows // TOKENS, ()
            x, weight, op = draw(samples, TOKENS, self.inputs), draw(self.units, self.inputs), "modulated_linear"
        weight = weight / weight[0].numel() ** 0.5
        bias, memory, index = draw(self.units), _memory(device, self.units, kind), _index(samples, device)
        forward = getattr(torch.ops.memmod, op).default

        def step() -> tuple[Tensor, ...]:
            return (forward(x, weight, bias, memory, None, index, "sigmoid", True, False, *geometry)[0],)

        return step


class TilePoint(NamedTuple):
    """One product ``[rows, inner]`` x ``[inner, columns]`` with one choice of tiles; plain PyTorch without.

    As a layer's forward it has gates on its columns, as a backward on what it sums over.
    """

    bucket: str
    rows: int
    columns: int
    inner: int
    forward: bool
    dtype: str
    config: MatmulConfig | None = None

    @property
    def shape(self) -> TilePoint:
        """The product, whatever its tiles."""
        return self._replace(config=None)

    def chosen(self, arch: int) -> MatmulConfig:
        """The tiles that the table now in force gives the product."""
        return matmul_config(self.rows, self.columns, DTYPES[self.dtype], arch)

    def prepare(self, device: str, kind: str = GIVEN) -> Step:
        """The product as a function that returns (y,)."""
        draw = _drawer(device, self.dtype, kind)
        a, b = draw(self.rows, self.inner), draw(self.columns, self.inner) / self.inner**0.5
        samples = self.rows // TOKENS if self.rows % TOKENS == 0 else self.rows
        memory, index = _memory(device, self.columns if self.forward else self.inner, kind), _index(samples, device)
        if self.config is not None:
            table, y = gate_table(memory, index, "sigmoid"), a.new_empty(self.rows, self.columns)
            b = b if self.forward else b.T.contiguous()
            side = {"out_gates" if self.forward else "in_gates": table}

            def step() -> tuple[Tensor, ...]:
                matmul(a, b, y, b_columns=self.forward, config=self.config, **side)
                return (y,)

            return step

        def plain() -> tuple[Tensor, ...]:
            s = gates(memory, gate_rows(index)).repeat_interleave(self.rows // samples, 0)
            return (((a @ b.T) * s).to(a.dtype) if self.forward else (a * s).to(a.dtype) @ b.T,)

        return plain


Point = PathPoint | TilePoint
# Seconds that a point takes; raises where it cannot run or its numbers are wrong.
Measure = Callable[[Point], float]


def _drawer(device: str, dtype: str, kind: str) -> Callable[..., Tensor]:
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        t = torch.randn(shape, generator=generator, device=device).to(DTYPES[dtype])
        return t if kind == GIVEN else t.double() if kind == EXACT else t.double().abs()

    return draw


def _memory(device: str, width: int, kind: str) -> Tensor:
    memory = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(1)).to(device)
    return memory if kind == GIVEN else memory.double()


def _index(samples: int, device: str) -> Tensor:
    return random_index(samples, torch.Generator().manual_seed(2)).to(device)


def path_points() -> list[PathPoint]:
    """The layers of which each threshold is measured, one threshold moving at a time."""
    points = []
    for inputs in (192, 384, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192):
        for units in (768, 3072):
            points.append(PathPoint("linear: fused up to inputs", inputs, 128 * TOKENS, inputs, units))
    for images in (1, 2, 4, 8, 16, 32, 64):
        rows, units = images * TOKENS, 768
        points.append(PathPoint("linear: fused from outputs", rows * units, rows, 768, units))
    for inputs in (8, 16, 32, 64, 128, 256):
        for side in (28, 56):
            points.append(
                PathPoint("conv: fused up to inputs x taps", 9 * inputs, 32 * side**2, inputs, 64, side, kernel=3)
            )
    for units in (4, 8, 16, 32, 64):
        points.append(PathPoint("conv: fused from units", units, 64 * 28**2, 32, units, 28, kernel=3))
    for images in (4, 16, 32, 64, 128, 256, 512):
        points.append(PathPoint("conv: fused from pixels", images * 14**2, images * 14**2, 64, 64, 14, kernel=3))
    return points


# By bucket: (rows, units, inputs) of the layers whose products are measured.
LAYERS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "many rows": ((128 * TOKENS, 3072, 768), (128 * TOKENS, 384, 1536), (8192, 4096, 4096)),
    "some rows": ((16 * TOKENS, 768, 768), (8 * TOKENS, 1152, 384)),
    "few tiles": ((512, 512, 512), (256, 1024, 1024)),
    "few rows": ((16, 1024, 1024), (32, 768, 3072)),
}
CANDIDATES: dict[int, tuple[MatmulConfig, ...]] = {
    2: (
        MatmulConfig(128, 256, 64, 8, 8, 4),
        MatmulConfig(128, 256, 64, 8, 8, 3),
        MatmulConfig(256, 128, 64, 8, 8, 3),
        MatmulConfig(128, 128, 64, 8, 8, 3),
        MatmulConfig(128, 128, 64, 8, 4, 4),
        MatmulConfig(128, 128, 64, 8, 4, 3),
        MatmulConfig(128, 128, 32, 8, 8, 4),
        MatmulConfig(64, 128, 64, 8, 4, 3),
        MatmulConfig(64, 128, 32, 8, 4, 4),
        MatmulConfig(64, 64, 64, 8, 4, 4),
        MatmulConfig(32, 64, 64, 8, 4, 4),
        MatmulConfig(16, 128, 64, 8, 4, 4),
        MatmulConfig(16, 64, 128, 8, 4, 3),
        MatmulConfig(16, 64, 64, 8, 4, 4),
    ),
    4: (
        MatmulConfig(128, 128, 32, 8, 8, 3),
        MatmulConfig(128, 64, 32, 8, 8, 3),
        MatmulConfig(128, 64, 32, 8, 4, 3),
        MatmulConfig(64, 64, 32, 8, 4, 3),
        MatmulConfig(32, 64, 32, 8, 4, 4),
        MatmulConfig(16, 128, 32, 8, 4, 4),
        MatmulConfig(16, 64, 32, 8, 4, 4),
    ),
}


def tile_points(dtype: str) -> list[TilePoint]:
    """Both products of each layer."""
    return [
        TilePoint(bucket, rows, *((units, inputs) if forward else (inputs, units)), forward, dtype)
        for bucket, layers in LAYERS.items()
        for rows, units, inputs in layers
        for forward in (True, False)
    ]


def tile_candidates(dtype: str, arch: int) -> list[MatmulConfig]:
    """What is measured, and what the table now in force has."""
    itemsize = DTYPES[dtype].itemsize
    return list(dict.fromkeys((*CANDIDATES[itemsize], *configs.MATMUL[arch, itemsize])))


def every_point(tables: Iterable[str], arch: int, dtypes: Iterable[str] = ("bf16", "fp32")) -> list[Point]:
    """All that the tables named measure."""
    points: list[Point] = []
    if "paths" in tables:
        points += [point._replace(path=path) for point in path_points() for path in ("unfused", "fused")]
    if "tiles" in tables:
        points += [
            point._replace(config=config)
            for dtype in dtypes
            for point in tile_points(dtype)
            for config in tile_candidates(dtype, arch)
        ]
    return points


def measured(measure: Measure, point: Point, failures: list[str]) -> float:
    """Seconds; infinite where the point cannot be had, with the reason in `failures`."""
    try:
        return measure(point)
    except Exception as error:
        # Too many registers or too much shared memory, a wrong result: another candidate is taken.
        what = str(error).strip().splitlines()
        failures.append(f"{point}: {type(error).__name__}: {what[0] if what else ''}")
        return math.inf


def cut(gains: Sequence[tuple[int, float]], up_to: bool) -> int:
    """The threshold under which the sum of the gains of what is fused is largest.

    Args:
        gains: (value, logarithm of the library's time over the fused path's) in the order of the values.
        up_to: fused are the values up to the threshold, else those from it; none if it lies outside of all values.
    """
    gains = list(gains) if up_to else list(reversed(gains))
    best, total = 0.0, 0.0
    threshold = 0 if up_to else gains[0][0] + 1
    for value, gain in gains:
        total += gain
        if total > best:
            best, threshold = total, value
    return threshold


def paths_table(measure: Measure, points: Iterable[PathPoint], where: str, generation: int) -> str:
    """An entry of `TABLES` of gpu_policy.py, each threshold with its measurement; those without points as they are."""
    failures: list[str] = []
    logs: dict[str, dict[int, list[float]]] = {}
    for point in points:
        library, fused = (measured(measure, point._replace(path=path), failures) for path in ("unfused", "fused"))
        logs.setdefault(point.threshold, {}).setdefault(point.value, []).append(_gain(library, fused))
    comment = f"Measured on {where}: the library's time over the fused path's, forwards in bf16."
    lines = [*_comment(comment, 4), f"    {generation}: {{"]
    for threshold, before in gpu_policy.TABLES[generation].items():
        gains = [(value, sum(found) / len(found)) for value, found in sorted(logs.get(threshold, {}).items())]
        if gains:
            lines += _comment(", ".join(f"{_ratio(gain)} at {value}" for value, gain in gains) + ".", 8)
        else:
            lines += _comment("Not measured.", 8)
        chosen = cut(gains, up_to=" up to " in threshold) if gains else before
        lines.append(f'        "{threshold}": {chosen},')
    return "\n".join([*lines, "    },", *_failed(failures)])


# The logarithm of a ratio without a number: one of the two paths cannot run.
NEVER = 20.0


def _gain(library: float, fused: float) -> float:
    if math.isinf(fused):
        return -NEVER
    return NEVER if math.isinf(library) else math.log(library / fused)


def _ratio(gain: float) -> str:
    # The mean of several layers, of which one may have failed.
    return "failed" if abs(gain) > NEVER / 4 else f"{math.exp(gain):.2f}"


def tiles_table(measure: Measure, arch: int, where: str, dtypes: Sequence[str] = ("bf16", "fp32")) -> str:
    """The entries of `MATMUL` of configs.py for one architecture as Python, each with what its choice costs."""
    failures: list[str] = []
    lines = []
    for dtype in dtypes:
        points, candidates = tile_points(dtype), tile_candidates(dtype, arch)
        times = {
            point: {c: measured(measure, point._replace(config=c), failures) for c in candidates} for point in points
        }
        table = choose(times, candidates, arch)
        cost = _cost(times, table, arch)
        comment = f"Measured on {where} in {dtype}, time over the best candidate's: "
        comment += ", ".join(f"{bucket} {math.exp(log):.2f}" for bucket, log in cost.items()) + "."
        lines += [*_comment(comment, 4), f"    ({arch}, {DTYPES[dtype].itemsize}): ("]
        lines += [f"        MatmulConfig({', '.join(map(str, config))})," for config in table] + ["    ),"]
    return "\n".join([*lines, *_failed(failures)])


Times = dict[TilePoint, dict[MatmulConfig, float]]


def choose(times: Times, candidates: Sequence[MatmulConfig], arch: int) -> tuple[MatmulConfig, ...]:
    """The table of two to four tiles, from the largest to the smallest, under which all buckets are fastest."""
    ordered = sorted(candidates, key=lambda config: (-config.block_m * config.block_n, -config.block_m))
    best, least = (), math.inf
    for count in (2, 3, 4):
        for table in itertools.combinations(ordered, count):
            areas = [config.block_m * config.block_n for config in table]
            if len(set(areas)) < count:
                continue
            cost = _cost(times, table, arch)
            mean = sum(cost.values()) / len(cost)
            if mean < least - WORTH * (count > len(best) > 0):
                best, least = table, mean
    if not best:
        raise RuntimeError("no table of these candidates computes every product; see the failures of each")
    return best


def _cost(times: Times, table: Sequence[MatmulConfig], arch: int) -> dict[str, float]:
    """By bucket the mean logarithm of the table's time over the best candidate's."""
    logs: dict[str, list[float]] = {}
    itemsize = DTYPES[next(iter(times)).dtype].itemsize
    with mock.patch.dict(configs.MATMUL, {(arch, itemsize): tuple(table)}):
        for point, by_config in times.items():
            taken, least = by_config[point.chosen(arch)], min(by_config.values())
            logs.setdefault(point.bucket, []).append(math.inf if math.isinf(taken) else math.log(taken / least))
    return {bucket: sum(found) / len(found) for bucket, found in logs.items()}


def _comment(text: str, indent: int) -> list[str]:
    start = " " * indent + "# "
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=start, break_long_words=False)


def _failed(failures: Sequence[str]) -> list[str]:
    return [line for failure in failures for line in _comment(f"Left out: {failure}", 0)]
