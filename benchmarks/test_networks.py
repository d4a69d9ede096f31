"""Modulated networks against their rivals: a step of unlearning, and serving with one class for the whole batch."""

from __future__ import annotations

import pytest

from benchmarks.cases import NETWORKS, SERVED, NetworkCase


@pytest.mark.parametrize("case", NETWORKS, ids=str)
def test_step(measure, case: NetworkCase) -> None:
    measure(case, "forward+backward")


@pytest.mark.parametrize("case", SERVED, ids=str)
def test_serving(measure, case: NetworkCase) -> None:
    measure(case, "forward")
