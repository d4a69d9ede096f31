"""Modulated linear layers against their rivals."""

from __future__ import annotations

import pytest

from benchmarks.cases import LINEAR, Case
from benchmarks.measure import PHASES


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("case", LINEAR, ids=str)
def test_linear(measure, case: Case, phase: str) -> None:
    measure(case, phase)
