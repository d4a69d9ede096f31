"""`python -m benchmarks.retune [paths] [tiles]`: measures the kernels' paths and tiles on this GPU, prints the tables.

The tables are the entry of this card's generation in `TABLES` of memmod/ops/backends/gpu_policy.py and those of its
architecture in `MATMUL` of kernels/memmod_kernels/configs.py; what is printed replaces them.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memmod.ops import dispatch
from memmod.ops.backends import gpu_policy
from memmod.ops.backends.triton import register as triton_kernels

if TYPE_CHECKING:
    from benchmarks.tuning import Measure, Point

TABLES = ("paths", "tiles")


class WrongResult(Exception):
    """A candidate computes something else: its time means nothing."""


def unusable() -> str | None:
    """Why nothing can be measured here, or None."""
    if not torch.cuda.is_available():
        return "it measures on an NVIDIA GPU, and torch sees none"
    if triton_kernels.interpreted():
        return "TRITON_INTERPRET=1 runs the kernels on the CPU: unset it"
    return triton_kernels.unusable()


@functools.lru_cache(maxsize=1)
def expected(shape: Point, device: str) -> list[tuple[Tensor, float]]:
    """Of each tensor of a point's result the exact value, and the error that it may have.

    That is 2 x the error of plain PyTorch + eps x the largest magnitude that the sums of absolute values reach.
    """
    from benchmarks.tuning import EXACT, GIVEN, POSITIVE

    forced = dispatch.get_backend()
    dispatch.set_backend("reference")
    try:
        plain, exact, positive = (shape.prepare(device, kind)() for kind in (GIVEN, EXACT, POSITIVE))
    finally:
        dispatch.set_backend(forced)
    eps = torch.finfo(plain[0].dtype).eps
    return [
        (right, 2 * _largest(naive.double() - right) + eps * _largest(magnitude))
        for naive, right, magnitude in zip(plain, exact, positive, strict=True)
    ]


def check(point: Point, got: Sequence[Tensor], device: str) -> None:
    """Raises WrongResult where a point's tensors are not within their bounds."""
    for tensor, (exact, bound) in zip(got, expected(point.shape, device), strict=True):
        error = _largest(tensor.double() - exact)
        # NaN is no number within the bound.
        if not error <= bound:
            raise WrongResult(f"off by {error:.2e} > {bound:.2e}")


def _largest(t: Tensor) -> float:
    return t.abs().max().item()


@contextmanager
def on_path(point: Point) -> Iterator[None]:
    """The backend and the path of a point; the library's product has the tail that launches faster."""
    path = getattr(point, "path", None)
    by_cuda = path == "unfused" and dispatch.availability()["cuda"] is None
    forced, path_before = dispatch.get_backend(), gpu_policy.forced()
    dispatch.set_backend("cuda" if by_cuda else "triton")
    gpu_policy.force(path)
    try:
        yield
    finally:
        gpu_policy.force(path_before)
        dispatch.set_backend(forced)


def measurer(device: str, report: bool = True) -> Measure:
    """Checks a point's result, then times it with `triton.testing.do_bench`."""
    import triton.testing

    def measure(point: Point) -> float:
        with on_path(point):
            run = point.prepare(device)
            check(point, run(), device)
            seconds = triton.testing.do_bench(run, warmup=10, rep=50, return_mode="median") / 1e3
        if report:
            print(f"{seconds * 1e6:9.1f} µs  {point}", file=sys.stderr)
        return seconds

    return measure


def compile_ahead(points: Sequence[Point], device: str, processes: int) -> None:
    """Runs each point once, in processes of their own: Triton then has every kernel, which takes it seconds each."""
    shares = [(points[start::processes], device) for start in range(processes)]
    # CUDA does not survive a fork.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.starmap(_run_once, shares)


def _run_once(points: Sequence[Point], device: str) -> None:
    for point in points:
        try:
            with on_path(point):
                point.prepare(device)()
            torch.cuda.synchronize()
        except Exception:  # noqa: S110
            # Measuring it says what is wrong with it.
            pass
        torch.cuda.empty_cache()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retune", description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="paths|tiles", help="only these tables")
    named = parser.parse_args(arguments).tables or TABLES
    unknown = [name for name in named if name not in TABLES]
    if unknown:
        parser.error(f"there is no table {unknown[0]!r}: use {' or '.join(TABLES)}")
    reason = unusable()
    if reason is not None:
        print(f"benchmarks.retune cannot run here: {reason}", file=sys.stderr)
        return 1
    import triton

    from benchmarks import tuning
    from memmod.kernels.configs import architecture

    device = torch.device("cuda", torch.cuda.current_device())
    where = f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, triton {triton.__version__}"
    measure = measurer(str(device))
    compile_ahead(tuning.every_point(named, architecture(device)), str(device), min(16, os.cpu_count() or 1))
    if "paths" in named:
        print("# memmod/ops/backends/gpu_policy.py, in TABLES")
        print(tuning.paths_table(measure, tuning.path_points(), where, gpu_policy.generation(device)))
    if "tiles" in named:
        print("# kernels/memmod_kernels/configs.py, in MATMUL")
        print(tuning.tiles_table(measure, architecture(device), where))
    return 0


if __name__ == "__main__":
    sys.exit(main())
