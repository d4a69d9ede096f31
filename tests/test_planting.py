"""Every error planted in a formula fails the test that is meant for it."""

from __future__ import annotations

import pytest

from tests.evaluation.mutants import PLANTS as EVALUATION
from tests.explain.mutants import PLANTS as EXPLAIN
from tests.planting import planted


@pytest.mark.parametrize("plant", (*EVALUATION, *EXPLAIN), ids=lambda plant: f"{plant.module}: {plant.name}")
def test_it_is_caught(plant):
    with planted(plant), pytest.raises((AssertionError, IndexError)):
        plant.test()
    plant.test()
