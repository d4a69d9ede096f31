"""The tests of kernels need the plugin, which compiles and loads them."""

from __future__ import annotations

import pytest

from tests.cuda import plugin
from tests.ops.conftest import poisoned  # noqa: F401


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if plugin.SHIM in config.stash:
        return
    skip = pytest.mark.skip(reason="run by `pytest -p tests.cuda.plugin`, as make test does")
    for item in items:
        if item.get_closest_marker("cuda_host"):
            item.add_marker(skip)
