from __future__ import annotations

import os

import pytest
from filelock import FileLock

from tests.evaluation.attacks.problem import Problem, make


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Problem:
    """The problem, trained by one of the processes of pytest and read by the others."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with FileLock(folder / "attacks.lock"):
        return make(folder)
