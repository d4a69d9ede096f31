"""Every test file is collected: none lies in a folder that pytest passes over, or has a name that it does not know."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent


def test_no_folder_with_tests_is_passed_over(pytestconfig: pytest.Config) -> None:
    ignored, known = pytestconfig.getini("norecursedirs"), pytestconfig.getini("python_files")
    holding = [f for f in TESTS.rglob("*.py") if re.search(r"^(?:class Test|def test_)", f.read_text(), re.MULTILINE)]
    assert len(holding) > 80
    for file in holding:
        folders = file.relative_to(TESTS).parts[:-1]
        assert not [name for name in folders for pattern in ignored if fnmatch(name, pattern)], file
        assert any(fnmatch(file.name, pattern) for pattern in known), file
