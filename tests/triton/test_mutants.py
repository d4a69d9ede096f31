"""Every planted error is caught by the check that is meant for it, and by none without the error."""

from __future__ import annotations

import pytest

from memmod.ops import dispatch
from tests.triton.cost import needs_interpreter
from tests.triton.lint import sources, violations
from tests.triton.mutants import CHECKS, LINTED, MANY, NO_OTHER, PLANTS, RUN, Plant, kernels_from

TRIED = sorted({(plant.check, plant.case) for plant in RUN}, key=str)


def interpreted(test):
    for mark in needs_interpreter:
        test = mark(test)
    return test


@pytest.fixture
def forced():
    """The ops run the Triton kernels."""
    dispatch.set_backend("triton")
    yield
    dispatch.set_backend(None)


@pytest.mark.parametrize("plant", LINTED, ids=lambda plant: plant.name)
def test_the_lint_catches(plant):
    assert {f"lint: {violation.rule}" for violation in violations(plant.sources())} == {plant.check}


@pytest.mark.exhaustive
@interpreted
@pytest.mark.parametrize("plant", RUN, ids=lambda plant: plant.name)
def test_a_run_catches(plant, forced):
    with kernels_from(plant.sources()), pytest.raises(AssertionError, match=f"^{plant.sees}"):
        CHECKS[plant.check](plant.case)


@pytest.mark.exhaustive
@interpreted
@pytest.mark.parametrize(("check", "case"), TRIED, ids=lambda value: str(value))
def test_without_an_error_a_run_catches_nothing(check, case, forced):
    with kernels_from(sources()):
        CHECKS[check](case)


@pytest.mark.slow
@pytest.mark.parametrize("plant", RUN, ids=lambda plant: plant.name)
def test_the_lint_does_not_see_what_a_run_catches(plant):
    """So the runs are needed; and the lint does not fail for an accident of the changed text."""
    assert not violations(plant.sources())


@interpreted
def test_only_the_lint_sees_a_load_without_other(forced):
    """The interpreter reads 0 where the mask is false, as other=0.0 would; on a GPU the value is undefined."""
    with kernels_from(NO_OTHER.sources()):
        CHECKS["bound"](MANY)


@interpreted
def test_what_was_imported_stays():
    from memmod.kernels import linear

    with kernels_from(PLANTS[0].sources()):
        from memmod.kernels.linear import matmul
    assert matmul is not linear.matmul
    from memmod.kernels.linear import matmul

    assert matmul is linear.matmul


def test_a_plant_whose_place_is_gone_is_an_error():
    for snippet in ("tl.no_such_call(", "tl.load("):
        with pytest.raises(AssertionError, match="has its snippet"):
            Plant("gone", "linear.py", snippet, "", "lint: mask").sources()
    assert len({plant.name for plant in PLANTS}) == len(PLANTS)
