"""Every error planted in the CUDA kernels is caught by the check that is meant for it."""

from __future__ import annotations

import re

import pytest

from tests.cuda.mutants import CHECKS, PLANTS, run

pytestmark = pytest.mark.cuda_host_planted


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_it_is_caught(plant):
    done = run(plant)
    said = done.stdout + done.stderr
    assert done.returncode != 0, f"not caught: {said[-2000:]}"
    others = [other for other, (_, says) in CHECKS.items() if re.search(says, said)]
    assert plant.check in others, said[-3000:]


def test_names_are_unique():
    assert len({plant.name for plant in PLANTS}) == len(PLANTS)
