"""Nothing imports upwards, there is no circle, and no library where it must not be needed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.imports import ROOT, violations


def test_nothing_breaks_the_rules() -> None:
    assert violations() == []


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for folder in ("memmod", "kernels", "benchmarks", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("memmod/nn/linear.py", "from memmod.model import modulate", "memmod.model, which is not below it"),
        (
            "memmod/surgery/fold.py",
            "def f():\n    import memmod.runs.folder",
            "memmod.runs.folder, which is not below it",
        ),
        ("memmod/errors.py", "from memmod import functional", "memmod.functional, which is not below it"),
        ("memmod/data/idx.py", "from rich.console import Console", "imports rich, which only cli may"),
        ("memmod/ops/dispatch.py", "from memmod.ops.backends.cpu import register", "is a circle"),
        (
            "memmod/ops/backends/cuda/primitives.py",
            "from memmod.ops.backends.cpu import register",
            "do not know of each other",
        ),
        ("benchmarks/networks.py", "from tests.helpers import EPS", "benchmarks/networks.py imports tests"),
        ("tests/nn/test_linear.py", "import benchmarks.cases", "tests/nn/test_linear.py imports benchmarks"),
        (
            "memmod/ops/backends/cpu/register.py",
            "from memmod.ops.backends.gpu import layers",
            "do not know of each other",
        ),
        (
            "memmod/ops/backends/gpu/layers.py",
            "from memmod.ops.backends.cuda import policy",
            "do not know of each other",
        ),
        ("memmod/ops/backends/gpu/output.py", "from memmod.ops import dispatch", "it may know memmod.ops.backends.gpu"),
        ("memmod/ops/backends/gpu/output.py", "import memmod.kernels.sums", "memmod.kernels.sums, which is not below"),
        ("kernels/memmod_kernels/sums.py", "from memmod.ops import dispatch", "it may know memmod.kernels"),
        ("memmod/new.py", "", "memmod.new belongs to no part in the order"),
    ],
)
def test_a_planted_import_is_found(copy: Path, file: str, line: str, words: str) -> None:
    assert violations(copy) == []
    path = copy / file
    path.write_text((path.read_text() if path.exists() else "") + f"\n{line}\n")
    assert any(words in violation for violation in violations(copy)), violations(copy)
