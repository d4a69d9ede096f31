"""Every error planted in a formula fails the test that is meant for it."""

from __future__ import annotations

import pytest

from tests.evaluation.mutants import PLANTS, planted


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: f"{plant.module}: {plant.name}")
def test_it_is_caught(plant):
    with planted(plant), pytest.raises((AssertionError, IndexError)):
        plant.test()
    plant.test()
