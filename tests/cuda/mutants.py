"""Errors planted in a copy of the CUDA kernels, each with the check that has to see it.

`python -m tests.cuda.mutants NAME` compiles one and runs its check; `run` does so under the sanitizer it needs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple

from tests.cuda.build import ROOT, preload, sources

# What stops a run, by check: the build, and what it says.
CHECKS = {
    "bound": ("plain", "error .*, bound|has NaN"),
    "schedules": ("plain", "depends on the schedule"),
    "relu": ("plain", "a ReLU inside gives another"),
    "bias": ("plain", "a bias with inside=True gives another"),
    "shim": ("plain", "RuntimeError: .*thread|RuntimeError: deadlock"),
    "compiler": ("plain", "static assertion failed"),
    "address sanitizer": ("asan", "ERROR: AddressSanitizer"),
    "thread sanitizer": ("tsan", "WARNING: ThreadSanitizer: data race"),
}


class Plant(NamedTuple):
    """One error: in `file`, each snippet, which is there once, becomes its replacement."""

    name: str
    file: str
    changes: tuple[tuple[str, str], ...]
    check: str
    case: str = ""
    """of tests/cuda/cases.py; "": the shim's own `warp_kernel`"""

    def sources(self) -> dict[str, str]:
        """The kernels' files with the error."""
        files = sources()
        for snippet, replacement in self.changes:
            found = files[self.file].count(snippet)
            assert found == 1, f"{self.name}: {self.file} has its snippet {found} times"
            assert snippet != replacement
            files[self.file] = files[self.file].replace(snippet, replacement)
        return files


OUTPUT, LINEAR, FUSED, CONV, GATES, WARP = (
    "cuda/output.cu",
    "cuda/linear_small.cu",
    "cuda/linear_fused.cu",
    "cuda/conv2d.cu",
    "cuda/include/gates.cuh",
    "cuda/wrappers.cu",
)
SYNC = "  __syncthreads();\n"
ROWS_SYNC = "+ v] = sum[v];\n  __syncthreads();\n"
CLASS_SYNC = "parts[threadIdx.y][threadIdx.x] = sum;\n  __syncthreads();\n"
PARTS_SYNC = "  __syncthreads();\n  if (!mine) return;\n"
ARRIVED = "    __syncthreads();\n    if (step + STAGES"
LAST_WAIT = "  ptx::cp_async_wait<0>();\n  __syncthreads();\n"
RESULTS = "sum[i][j][e + 1]});\n      }\n  __syncthreads();\n"
FULL_WAIT = "      hopper::wait(&shared.full[stage.at], stage.parity);\n"
ALL_PRODUCTS = "    hopper::wait_products<0>();\n"
GATES_WAIT = "    hopper::wait(&shared.gates_full[buffer.at], buffer.parity);\n"
GATES_READ = "    hopper::wait(&shared.gates_empty[buffer.at], buffer.parity ^ 1);\n"
Y_WAIT = "    if (elected) hopper::wait_stores();\n"
LAST_Y_WAIT = "  }\n  if (elected) hopper::wait_stores();\n"
READ_A = "place(warp_m + i * 16 + lane % 16, half + lane / 16)"

PLANTS = (
    Plant("no barrier before the sums of a block", OUTPUT, ((ROWS_SYNC, "+ v] = sum[v];\n"),), "bound", "ROWS"),
    Plant(
        "no barrier before the sums of a class", OUTPUT, ((CLASS_SYNC, CLASS_SYNC.replace(SYNC, "")),), "bound", "FEW"
    ),
    Plant("no barrier before the warps' sums", LINEAR, ((PARTS_SYNC, "  if (!mine) return;\n"),), "bound", "SMALL"),
    Plant(
        "the half of a sum that is kept given away",
        LINEAR,
        (("given = upper ? sum[i] : sum[i + HALF]", "given = upper ? sum[i + HALF] : sum[i]"),),
        "bound",
        "SMALL",
    ),
    Plant("the next weights not taken", LINEAR, (("] = next[u];", "] = loaded[u];"),), "bound", "SMALL"),
    Plant(
        "input gates of the first row",
        LINEAR,
        (("gate_of(call.in, (first + m)", "gate_of(call.in, 0 * (first + m)"),),
        "bound",
        "SMALL",
    ),
    Plant("no barrier in the product's steps", CONV, ((ARRIVED, "    if (step + STAGES"),), "bound", "CONV_BF16"),
    Plant(
        "no barrier before the results",
        CONV,
        ((LAST_WAIT, "  ptx::cp_async_wait<0>();\n"),),
        "thread sanitizer",
        "CONV",
    ),
    Plant("no barrier behind the results", CONV, ((RESULTS, RESULTS.replace(SYNC, "")),), "bound", "CONV"),
    Plant(
        "no wait for the copies",
        CONV,
        (("cp_async_wait<STAGES - 2>", "cp_async_wait<STAGES - 1>"),),
        "bound",
        "CONV_BF16",
    ),
    Plant(
        "rows of a fragment swapped", CONV, ((READ_A, READ_A.replace("lane % 16", "(lane + 8) % 16")),), "bound", "CONV"
    ),
    Plant(
        "chunks of a fragment swapped", CONV, ((READ_A, READ_A.replace("lane / 16", "1 - lane / 16")),), "bound", "CONV"
    ),
    Plant(
        "a pixel too many written",
        CONV,
        (("if (m >= pixels) break;", "if (m > pixels) break;"),),
        "address sanitizer",
        "CONV",
    ),
    Plant(
        "a unit too many read",
        LINEAR,
        ((": call.units - 1;", ": call.units;"),),
        "address sanitizer",
        "SMALL",
    ),
    Plant(
        "a number too many of a line",
        OUTPUT,
        (("j < others; j += LANES", "j <= others; j += LANES"),),
        "address sanitizer",
        "LINES",
    ),
    Plant("taps above the image read", CONV, (("    if (h < 0 || w < 0) return -1;\n", ""),), "bound", "CONV"),
    Plant(
        "a shuffle whose mask leaves lanes out",
        OUTPUT,
        (("__shfl_xor_sync(0xffffffff, sum", "__shfl_xor_sync(0x0000ffff, sum"),),
        "shim",
        "LINES",
    ),
    Plant(
        "a barrier that half of a block reaches",
        LINEAR,
        ((PARTS_SYNC, PARTS_SYNC.replace(SYNC, "  if (thread < 48) __shfl_sync(0xffffffff, 1, 0);\n")),),
        "shim",
        "SMALL",
    ),
    Plant("a sum of a fourth of the lanes", OUTPUT, (("lanes = LANES / 2", "lanes = LANES / 8"),), "bound", "LINES"),
    Plant(
        "an atomic for a sum",
        OUTPUT,
        (
            (
                "  parts[threadIdx.y][threadIdx.x] = sum;\n",
                "  parts[threadIdx.y][threadIdx.x] = 0.0f;\n"
                "  __syncthreads();\n  atomicAdd(&parts[0][threadIdx.x], sum);\n",
            ),
        ),
        "schedules",
        "FEW",
    ),
    Plant(
        "an atomic's += without the atomic",
        OUTPUT,
        (
            (
                "  parts[threadIdx.y][threadIdx.x] = sum;\n",
                "  parts[threadIdx.y][threadIdx.x] = 0.0f;\n  __syncthreads();\n  parts[0][threadIdx.x] += sum;\n",
            ),
        ),
        "thread sanitizer",
        "FEW",
    ),
    Plant(
        "a shuffle taken for a fence",
        WARP,
        (("  __syncwarp();\n  out[lane]", "  __shfl_sync(0xffffffff, lane, 0);\n  out[lane]"),),
        "thread sanitizer",
    ),
    Plant(
        "a second block that starts late",
        CONV,
        (("first_m = blockIdx.x * BM", "first_m = blockIdx.x * (BM + 16)"),),
        "bound",
        "CONV",
    ),
    Plant(
        "a second chunk of a sample that starts early",
        OUTPUT,
        (("first = chunk * call.chunk;", "first = chunk * (call.chunk - 1);"),),
        "bound",
        "ROWS",
    ),
    Plant(
        "a sample too late at the next gates",
        OUTPUT,
        (("next = (sample + 1)", "next = (sample + 2)"),),
        "bound",
        "MANY_ROWS",
    ),
    Plant(
        "rows behind a sample's end left out",
        OUTPUT,
        (("row = done;", "row = done > row ? row + UNROLL * by : done;"),),
        "bound",
        "MANY_ROWS",
    ),
    Plant(
        "every fourth row twice",
        OUTPUT,
        (("early_x[u] = load_early<V>(x + o)", "early_x[u] = load_early<V>(x + o - (u == 3 ? by * width : 0))"),),
        "bound",
        "ROWS",
    ),
    Plant(
        "-1 taken for class 0",
        GATES,
        (("const int64_t c = row[i];", "const int64_t c = row[i] < 0 ? 0 : row[i];"),),
        "bound",
        "SMALL",
    ),
    Plant(
        "a class twice in a set counts twice",
        GATES,
        (("c == but || repeated(row, i)", "c == but"),),
        "bound",
        "ODD_ROWS",
    ),
    Plant(
        "the sample of the next row",
        LINEAR,
        (("gate_of(call.out, row / call.rows_per_sample", "gate_of(call.out, 0 * row"),),
        "bound",
        "SMALL",
    ),
    Plant(
        "bias inside of the gate",
        CONV,
        (
            (
                "z = results[r * RESULT + column + v], ungated = call.gate_bias ? z + bias[v] : z",
                "z = results[r * RESULT + column + v], ungated = z + bias[v]",
            ),
        ),
        "bound",
        "CONV_F16",
    ),
    Plant(
        "a long sum left to the tensor cores",
        CONV,
        (
            ("float part[4] = {};", "auto& part = sum[i][j];"),
            ("          for (int e = 0; e < 4; ++e) sum[i][j][e] += part[e];\n", "          for (;;) break;\n"),
        ),
        "bound",
        "CONV_LONG",
    ),
    Plant(
        "NaN stopped by a ReLU",
        OUTPUT,
        (("relu && y <= 0.0f ? 0.0f : y", "relu && !(y > 0.0f) ? 0.0f : y"),),
        "relu",
        "ROWS",
    ),
    Plant(
        "a gradient that a ReLU stops times 0",
        OUTPUT,
        (("other <= 0.0f ? 0.0f : x", "other <= 0.0f ? 0.0f * x : x"),),
        "relu",
        "LINES",
    ),
    Plant("a bias inside added outside", OUTPUT, (("inside = !OTHER && inside;", "inside = false;"),), "bias", "ROWS"),
    Plant(
        "a bias inside of a line added outside",
        OUTPUT,
        ((": pass<false>(a, b, gate, shift, call.bias_inside", ": pass<false>(a, b, gate, shift, false"),),
        "bias",
        "LINES_BF16",
    ),
    Plant(
        "a bias inside added twice", OUTPUT, (("inside ? gated : gated + shift", "gated + shift"),), "bias", "ODD_ROWS"
    ),
    Plant("a ReLU in front of the bias", OUTPUT, (("relu && y <= 0.0f", "relu && gated <= 0.0f"),), "relu", "ODD_ROWS"),
    Plant(
        "a gradient that a ReLU does not stop",
        OUTPUT,
        (("value = OTHER && relu", "value = false && relu"),),
        "relu",
        "MANY_ROWS",
    ),
    Plant("a tile multiplied before it is there", FUSED, ((FULL_WAIT, ""),), "shim", "FUSED"),
    Plant(
        "a tile given back while it is multiplied",
        FUSED,
        (("hopper::wait_products<1>();", "hopper::wait_products<2>();"),),
        "bound",
        "FUSED",
    ),
    Plant("products that nothing waits for", FUSED, ((ALL_PRODUCTS, ""),), "shim", "FUSED"),
    Plant(
        "a product added to the tile before it", FUSED, (("k == 0 && i == 0", "k == 0 && i == 1"),), "bound", "FUSED"
    ),
    Plant("gates read before they are made", FUSED, ((GATES_WAIT, ""),), "bound", "FUSED"),
    Plant("gates made while others are read", FUSED, ((GATES_READ, ""),), "shim", "FUSED"),
    Plant("a tile of y written while one is stored", FUSED, ((Y_WAIT, ""),), "bound", "FUSED"),
    Plant("a tile of y that nothing waits for", FUSED, ((LAST_Y_WAIT, "  }\n"),), "shim", "FUSED"),
    Plant(
        "a tile of y without the swizzle",
        FUSED,
        (("hopper::swizzled((own + 8 * h) * 128 + j % 8 * 16)", "((own + 8 * h) * 128 + j % 8 * 16)"),),
        "bound",
        "FUSED",
    ),
    Plant(
        "no sample behind a tile's second",
        FUSED,
        (("[at / call.rows_per_sample - first]", "[at / call.rows_per_sample - first > 0]"),),
        "bound",
        "FUSED_SETS",
    ),
    Plant(
        "fewer bytes announced than come",
        FUSED,
        (("sizeof(shared.x[0]) + sizeof(shared.weight[0])", "sizeof(shared.weight[0])"),),
        "shim",
        "FUSED",
    ),
    Plant(
        "a barrier that counts warpgroups where warps arrive",
        FUSED,
        (
            (
                "hopper::initialise(&shared.empty[i], CONSUMER_WARPS);",
                "hopper::initialise(&shared.empty[i], CONSUMERS);",
            ),
        ),
        "shim",
        "FUSED",
    ),
    Plant(
        "gates of units that are not there",
        FUSED,
        (("      if (unit >= call.units) continue;\n", ""),),
        "address sanitizer",
        "FUSED",
    ),
    Plant(
        "shared memory without the macro",
        OUTPUT,
        (("MEMMOD_SHARED(float, parts, [WARPS][LANES])", "__shared__ float parts[WARPS][LANES]"),),
        "compiler",
        "FEW",
    ),
)


def run(plant: Plant) -> subprocess.CompletedProcess[str]:
    """The plant's check in a process of its own."""
    kind = CHECKS[plant.check][0]
    environment = {**os.environ, "LD_PRELOAD": preload(kind), "OMP_NUM_THREADS": "1"}
    environment |= {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1 exitcode=66"}
    command = [sys.executable, "-m", "tests.cuda.mutants", plant.name]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


def main(name: str) -> None:
    import ctypes

    import torch

    from tests.cuda import cases, plugin
    from tests.cuda.tail import assert_bias, assert_relu
    from tests.ops.bounds import assert_within_bound, run_op

    plant = next(plant for plant in PLANTS if plant.name == name)
    shim = plugin.load(CHECKS[plant.check][0], plant.sources())
    torch.use_deterministic_algorithms(True)
    if not plant.case:
        tensors = [torch.ones(32) for _ in range(4)]
        error = shim.memmod_test_run(b"warp", *(ctypes.c_void_p(t.data_ptr()) for t in tensors), ctypes.c_uint(0))
        assert not error
        return
    problem = getattr(cases, plant.case).draw()
    if plant.check in ("relu", "bias"):
        (assert_relu if plant.check == "relu" else assert_bias)(problem)
        return
    needs = cases.frozen(problem)
    first = None
    for seed in range(3):
        shim.memmod_host_seed(seed)
        results = run_op(problem, needs)
        assert_within_bound([problem], lambda p, results=results: results, needs)
        first = first or results
        for key, value in results.items():
            assert torch.equal(value, first[key]), f"{key} depends on the schedule"


if __name__ == "__main__":
    main(sys.argv[1])
