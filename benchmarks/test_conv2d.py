"""Modulated conv2d layers against their rivals."""

from __future__ import annotations

import pytest

from benchmarks.cases import CONV, Case
from benchmarks.measure import PHASES


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("case", CONV, ids=str)
def test_conv2d(measure, case: Case, phase: str) -> None:
    measure(case, phase)
