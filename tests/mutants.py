"""docs/planted-errors.md, every planted error and what catches it; `python -m tests.mutants` writes it."""

from __future__ import annotations

from pathlib import Path

from tests.cuda.mutants import PLANTS as CUDA_PLANTS
from tests.evaluation.mutants import PLANTS as EVALUATION_PLANTS
from tests.explain.mutants import PLANTS as EXPLAIN_PLANTS
from tests.triton.mutants import PLANTS

DOCUMENT = Path(__file__).resolve().parents[1] / "docs/planted-errors.md"
HEAD = """# Planted errors, and what catches them

A check that has never failed proves nothing. The tests plant each of these errors in a copy of the code and require
that the check meant for it fails; without the error the same check passes. Written by `python -m tests.mutants`;
`make test` and `make test-all` run every line, and fail if this file is out of date.
"""
TRITON = """## Triton kernels

- **lint: RULE** reads the kernels' source (`tests/triton/lint.py`).
- **bound**: interpreted, the kernel leaves the error bound against the fp64 oracle; outputs start as NaN.
- **zero**: the gradient of a class that no sample selects is not exactly 0.
- **guard**: bytes around an output are changed.
- **reads**: a load or store lies outside of its argument.
- **machine code**: compiled for sm_80, sm_90 and sm_100, and inspected (`tests/triton/aot.py`).
"""
CUDA = """
## CUDA C++ kernels

Run on the CPU under the host shim of `tests/cuda/`; without an error the same cases pass in every build.

- **bound**: the results leave the error bound against the fp64 oracle, or hold NaN, which shared memory, copies
  that are not waited for, and outputs start as.
- **schedules**: the results' bits depend on the order in which threads run.
- **shim**: a thread does what a GPU does not define.
- **compiler**: it does not compile.
- **machine code**: compiled for sm_80, sm_90 and sm_100 by nvcc, and inspected (`tests/cuda/machine_code.py`).
- **address sanitizer**, **thread sanitizer**: reported by the builds with these.
"""
EVALUATION = """
## Metrics, attacks, verdicts and explanations

Each formula of `memmod/evaluation` and `memmod/explain` against values worked out by hand in the test that is named.
"""
# What tests/triton/test_ahead_of_time_mutants.py plants.
MACHINE_CODE = (
    ("an oversized tile", "spills: local loads and stores"),
    ("a tile with too many stages", "shared memory beyond the architecture's limit"),
    ("an atomic for a sum", "atomics on global memory"),
    ("strides that leave no 16-byte accesses", "too few 16-byte loads and stores"),
    ("a product without tensor cores", "no tensor-core instruction"),
    ("a changed number of registers", "another line than the committed report's"),
)
# What tests/cuda/test_machine_code.py plants.
CUDA_MACHINE_CODE = (
    ("a float atomic", "atomics on global memory"),
    ("an array with an index that is computed", "local memory"),
    ("a tail that reads and writes 4 bytes at a time", "no LDG, no STG of 128 bits"),
    ("a tail that reads 4 bytes at a time", "no LDG of 128 bits"),
    ("a product without tensor cores", "no tensor-core instruction"),
    ("a product that copies 4 bytes at a time", "no LDGSTS of 128 bits"),
    ("a changed number of registers", "another line than the committed report's"),
)


def table(*rows: tuple[str, ...]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"


def text() -> str:
    """The document."""
    heads = ("error", "file", "caught by"), ("---",) * 3
    source = [(plant.name, plant.file, plant.check) for plant in PLANTS]
    machine = [(error, "", f"machine code: {finding}") for error, finding in MACHINE_CODE]
    cuda = [(plant.name, plant.file.rpartition("/")[2], plant.check) for plant in CUDA_PLANTS]
    cuda += [(error, "", f"machine code: {finding}") for error, finding in CUDA_MACHINE_CODE]
    formulas = [
        (plant.name, plant.module.replace(".", "/"), plant.test.__name__)
        for plant in (*EVALUATION_PLANTS, *EXPLAIN_PLANTS)
    ]
    parts = [HEAD, TRITON, table(*heads, *source, *machine), CUDA.lstrip(), table(*heads, *cuda)]
    return "\n".join([*parts, EVALUATION.lstrip(), table(*heads, *formulas)])


if __name__ == "__main__":
    beside = DOCUMENT.with_suffix(".tmp")
    beside.write_text(text())
    beside.replace(DOCUMENT)
