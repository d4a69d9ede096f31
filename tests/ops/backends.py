"""Which backends the op tests run: the one that MEMMOD_BACKEND names, or every one with kernels on this machine."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from memmod.ops import dispatch
from tests.ops.problems import Case, device_of


def backends(op: str) -> list[str]:
    """The names of the backends that have a kernel for `op`."""
    if dispatch.get_backend() is not None:
        return [dispatch.get_backend()]
    available = [name for name, reason in dispatch.availability().items() if reason is None]
    return [name for name in available if dispatch.kernel(op, name) is not None]


def _marks(backend: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.gpu] if device_of(backend) == "cuda" else []


def each_case(cases: Iterable[Case]) -> pytest.MarkDecorator:
    """Runs a test `(backend, case)` for every case with every backend of its op; on a GPU with mark `gpu`."""
    params = [
        pytest.param(backend, case, id=f"{case}-{backend}", marks=_marks(backend))
        for case in cases
        for backend in backends(case.op)
    ]
    return pytest.mark.parametrize(("backend", "case"), params, indirect=["backend"])
