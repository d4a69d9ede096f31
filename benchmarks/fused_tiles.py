"""`python -m benchmarks.fused_tiles`: csrc/cuda/linear_fused.cu by the columns of its tile, beside the library's
product and that with the pass of the gates behind it; by which `COSTS` in that file is fitted.

Results are checked first. Each time is the median of three turns, each `do_bench`'s median of replays of a CUDA graph:
without the host. Needs a GPU of compute capability 9.0.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_variants import on_variant
from memmod import functional
from memmod.ops import dispatch
from memmod.ops.backends.cuda import policy
from memmod.ops.backends.cuda.primitives import gated_product
from memmod.ops.calls import LinearCall

# Samples, rows of each, inputs, units: linear layers of ViT-T, -S and -B, an MLP, 1x1 convolutions of a ResNet-50.
SHAPES = (
    (64, 197, 384, 1152),
    (64, 197, 384, 384),
    (64, 197, 384, 1536),
    (64, 197, 1536, 384),
    (256, 197, 384, 1536),
    (256, 197, 1536, 384),
    (64, 197, 768, 768),
    (64, 197, 768, 3072),
    (64, 197, 3072, 768),
    (128, 196, 1024, 1024),
    (8, 1024, 4096, 4096),
    (8, 197, 192, 768),
    (64, 3136, 64, 256),
    (64, 196, 256, 1024),
    (64, 49, 2048, 512),
)
COLUMNS = (128, 192, 256)
CLASSES = 10
TURNS = 3


def replayed(run: Callable[[], object]) -> Callable[[], None]:
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def microseconds(runs: list[Callable[[], None]]) -> list[float]:
    import triton.testing

    turns = [
        [1e3 * triton.testing.do_bench(run, warmup=5, rep=20, return_mode="median") for run in runs]
        for _ in range(TURNS)
    ]
    return [statistics.median(times) for times in zip(*turns, strict=True)]


def by_library(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The library's product and the pass of the gates."""

    def unfused() -> Tensor:
        with on_variant("memmod cuda unfused"):
            return run()

    return unfused


def measure(samples: int, rows: int, inputs: int, units: int) -> str:
    """One line of the table; raises ArithmeticError where a tile computes something else."""
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (
        t.to("cuda", torch.bfloat16)
        for t in (
            torch.randn(samples, rows, inputs, generator=g),
            torch.randn(units, inputs, generator=g) / inputs**0.5,
            torch.randn(units, generator=g),
        )
    )
    memory = torch.randn(CLASSES, units, generator=g).cuda()
    index = torch.randint(0, CLASSES, (samples,), generator=g).cuda()
    call = LinearCall(x, weight, bias, memory, None, index, "sigmoid", True, False)
    exact = (x.float() @ weight.float().T + bias.float()) * memory.sigmoid()[index][:, None]
    y = torch.empty(samples, rows, units, dtype=x.dtype, device="cuda")

    def tile(columns: int) -> Callable[[], None]:
        return lambda: gated_product(x, call, y, columns)

    for columns in COLUMNS:
        y.fill_(float("nan"))
        tile(columns)()
        error = ((y.float() - exact).norm() / exact.norm()).item()
        # Rounding to bf16 gives 1.7e-3; NaN is no number below it.
        if not error < 2.5e-3:
            raise ArithmeticError(
                f"tiles of {columns} columns are off by {error:.1e} at {(samples, rows, inputs, units)}"
            )

    def ours() -> Tensor:
        return functional.modulated_linear(x, weight, bias, memory, index)

    runs = [lambda: F.linear(x, weight, bias), by_library(ours), ours, *map(tile, COLUMNS)]
    plain, unfused, chosen, *tiles = microseconds([replayed(run) for run in runs])
    ratios = [unfused / plain, chosen / plain, min(tiles) / plain, *(time / plain for time in tiles)]
    shape = f"{samples * rows} rows, {inputs}→{units}"
    return f"| {shape} | {plain:.1f} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |"


def main() -> int:
    reason = dispatch.availability()["cuda"]
    if reason is None and not policy.has_linear_fused(torch.device("cuda", torch.cuda.current_device())):
        reason = f"{torch.cuda.get_device_name()} has not the instructions of compute capability 9.0"
    if reason is not None:
        print(f"benchmarks.fused_tiles cannot run here: {reason}", file=sys.stderr)
        return 1
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16; others as multiples of the library's µs\n")
    heads = ("", "library, µs", "library and pass", "chosen", "fastest tile", *(f"{n} columns" for n in COLUMNS))
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    with torch.no_grad():
        for shape in SHAPES:
            print(measure(*shape), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
