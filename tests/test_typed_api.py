"""The types of the public API, as a user's checker sees them: right uses pass, and wrong ones are found.

`make lint` checks memmod itself.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

TYPED = Path(__file__).resolve().parent / "typed"

pytestmark = pytest.mark.slow


def _found(file: Path) -> set[tuple[int, str, str]]:
    """(line, kind, message) of each error in a file."""
    command = [sys.executable, "-m", "pyrefly", "check", "--python-interpreter-path", sys.executable]
    command += ["--output-format", "json", str(file)]
    result = subprocess.run(command, cwd=TYPED, capture_output=True, text=True, timeout=300)
    assert result.stdout, result.stderr
    return {(error["line"], error["name"], error["description"]) for error in json.loads(result.stdout)["errors"]}


def test_right_uses_pass():
    assert _found(TYPED / "right.py") == set()


def test_wrong_uses_are_found_and_nothing_else():
    lines = (TYPED / "wrong.py").read_text().splitlines()
    marked = [(number, re.search(r"# error: ([\w-]+)$", line)) for number, line in enumerate(lines, 1)]
    wanted = {(number, mark[1]) for number, mark in marked if mark}
    assert len(wanted) >= 15
    assert {(line, kind) for line, kind, _ in _found(TYPED / "wrong.py")} == wanted


def test_what_has_another_type_is_found(tmp_path):
    program = (
        (TYPED / "right.py").read_text().replace("assert_type(wf.num_classes, int)", "assert_type(wf.num_classes, str)")
    )
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "pyrefly.toml").write_text(f'preset = "default"\nsearch-path = ["{TYPED.parent.parent}"]\n')
    assert [kind for _, kind, _ in _found(tmp_path / "program.py")] == ["assert-type"]
