"""The C++ sources of csrc/cpu and csrc/gpu: no folder includes what stands above it, and only torch/ knows Python."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import memmod

SOURCES = Path(memmod.__file__).resolve().parent.parent / "csrc"
# What each folder may include beside itself.
BELOW = {
    "base": set(),
    "micro": {"base"},
    "gates": {"base", "micro"},
    "gemm": {"base", "micro"},
    "conv": {"base", "micro", "gates", "gemm"},
    "layers": {"base", "micro", "gates", "gemm", "conv"},
    "gpu": {"gates", "conv", "layers"},
    "torch": {"base", "micro", "gates", "gemm", "conv", "layers", "gpu"},
}

pytestmark = pytest.mark.skipif(not SOURCES.is_dir(), reason="not run from a source tree")


def faults(folder: str, text: str) -> list[str]:
    """The lines of a file in `folder` that include what it may not."""
    own = [f"{folder}/", *(f"{below}/" for below in BELOW[folder])]
    found = []
    for line in re.findall(r'^#include (?:"[^"]+"|<[^>]+>)', text, re.MULTILINE):
        name = line.split()[1][1:-1]
        python = line.endswith(">") and name.startswith(("pybind11/", "torch/", "Python.h"))
        if (python and folder != "torch") or (line.endswith('"') and not name.startswith(tuple(own))):
            found.append(line)
    return found


def test_no_file_includes_what_stands_above_it():
    folders = {path: path.relative_to(SOURCES / "cpu").parts[0] for path in (SOURCES / "cpu").rglob("*.*")}
    folders |= dict.fromkeys((SOURCES / "gpu").iterdir(), "gpu")
    assert set(folders.values()) == set(BELOW)
    found = {path: faults(folder, path.read_text(encoding="utf-8")) for path, folder in folders.items()}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("folder", "line", "allowed"),
    [
        ("gemm", '#include "gates/gates.h"', False),
        ("conv", '#include "gates/gates.h"', True),
        ("gates", '#include "layers/layers.h"', False),
        ("micro", '#include "microkernels.h"', False),
        ("layers", "#include <torch/csrc/autograd/python_variable.h>", False),
        ("layers", "#include <pybind11/pybind11.h>", False),
        ("torch", "#include <pybind11/pybind11.h>", True),
        ("layers", "#include <ATen/core/Tensor.h>", True),
    ],
)
def test_an_include_that_is_not_allowed_is_found(folder, line, allowed):
    assert faults(folder, f"// A file.\n{line}\n") == ([] if allowed else [line])
