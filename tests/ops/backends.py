"""Which backends the op tests run: the one that MEMMOD_BACKEND names, or every one with kernels on this machine."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from memmod.ops import dispatch
from memmod.ops.backends.cpu import extension
from tests.ops.problems import Case, device_of

# From the least to the best.
ISAS = ("portable", "avx2", "avx512", "avx512_bf16", "amx")


def backends(op: str) -> list[str]:
    """The names of the backends that have a kernel for `op`."""
    if dispatch.get_backend() is not None:
        return [dispatch.get_backend()]
    available = [name for name, reason in dispatch.availability().items() if reason is None]
    return [name for name in available if dispatch.kernel(op, name) is not None]


def lesser_isas() -> tuple[str, ...]:
    """The instruction sets below the one that the CPU kernels use here."""
    return () if dispatch.availability()["cpu"] is not None else ISAS[: ISAS.index(extension.isa())]


def on_every_isa(names: Iterable[str]) -> list[str]:
    """`names`, and behind "cpu" the CPU kernels of each lesser instruction set, as in "cpu-avx2"."""
    found = []
    for name in names:
        found += [name, *(f"cpu-{isa}" for isa in lesser_isas() if name == "cpu")]
    return found


# Sizes beyond which a case takes seconds where a GPU's kernels run on the CPU.
LARGE = {"modulated_linear": 1_000_000, "modulated_conv2d": 1_000_000, "modulate_output": 50_000}
# Of the other cases one in so many runs there in `make test`: neighbours in a table differ in little.
SHARE = 3


def _marks(backend: str, case: Case, number: int) -> list[pytest.MarkDecorator]:
    if device_of(backend) == "cuda":
        return [pytest.mark.gpu]
    on_cpu = backend in ("triton", "cuda")
    left = case.size > LARGE[case.op] or number % SHARE
    return [pytest.mark.exhaustive] if on_cpu and left else []


def each_case(cases: Iterable[Case], every_isa: bool = False) -> pytest.MarkDecorator:
    """Runs a test `(backend, case)` for every case with every backend of its op; on a GPU with mark `gpu`.

    With `every_isa` also with the CPU kernels of lesser processors.
    """
    params = [
        pytest.param(backend, case, id=f"{case}-{backend}", marks=_marks(backend, case, number))
        for number, case in enumerate(cases)
        for backend in (on_every_isa(backends(case.op)) if every_isa else backends(case.op))
    ]
    return pytest.mark.parametrize(("backend", "case"), params, indirect=["backend"])
