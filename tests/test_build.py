"""What setup.py builds: the wheel's content, and its behaviour without torch, a compiler or CUDA sources."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import memmod

ROOT = Path(memmod.__file__).resolve().parent.parent
INPUTS = ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "memmod", "kernels", "csrc")
UNTRACKED = shutil.ignore_patterns("__pycache__", "*.so", "_build_info.json")

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="not run from a source tree")


@pytest.fixture
def tree(tmp_path):
    """A copy of everything that a build reads, without what earlier builds left."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in INPUTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=UNTRACKED)
        elif source.is_file():
            shutil.copy(source, copy / name)
    return copy


def _build(tree: Path, *, check: bool = True, **environment: str) -> tuple[list[str], Path, str]:
    """The wheel's files, the wheel, and all that the build printed."""
    target = tree.parent / "wheels"
    shutil.rmtree(target, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--verbose",
        "--no-build-isolation",
        "--no-deps",
        "-w",
        target,
        ".",
    ]
    env = {**os.environ, "MAX_JOBS": "1", **environment}
    result = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=500)
    output = result.stdout + result.stderr
    if not check:
        assert result.returncode != 0, "the build succeeded"
        return [], target, output
    assert result.returncode == 0, output
    (wheel,) = target.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist(), wheel, output


def _assert_holds_the_package(names: list[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"memmod", f"memmod_torch-{memmod.__version__}.dist-info"}
    expected = {"__init__.py", "py.typed", "kernels/__init__.py", "ops/reference.py", "nn/linear.py"}
    expected |= {f"report/templates/{path.name}" for path in (ROOT / "memmod/report/templates").iterdir()}
    assert {f"memmod/{name}" for name in expected} <= set(names)
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "memmod").rglob("*.py")}
    assert sources <= set(names)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_wheel_holds_the_package_and_its_extension_only(tree):
    names, wheel, _ = _build(tree)
    _assert_holds_the_package(names)
    info = json.loads(zipfile.ZipFile(wheel).read("memmod/_build_info.json"))
    assert info["torch"] == torch.__version__ and info["compiler"] and "-O3" in info["flags"]
    assert f"memmod/{info['extension']}" in names
    assert "-march=native" not in info["flags"] and "-ffast-math" not in info["flags"]
    assert not list((tree / "memmod").glob("_cpu*")), "a wheel's build writes nothing into the source folder"


def test_without_extension_the_wheel_is_pure_python(tree):
    names, wheel, _ = _build(tree, MEMMOD_EXT="0")
    _assert_holds_the_package(names)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in names if name.endswith((".so", ".cpp", ".h"))]
    info = json.loads(zipfile.ZipFile(wheel).read("memmod/_build_info.json"))
    assert info["extension"] is None and "MEMMOD_EXT=0" in info["reason"]


def test_a_deleted_file_does_not_stay_in_the_wheel(tree):
    (tree / "memmod/passing.py").write_text("")
    (tree / "memmod/visitor").mkdir()
    (tree / "memmod/visitor/__init__.py").write_text("")
    names, _, _ = _build(tree, MEMMOD_EXT="0")
    assert {"memmod/passing.py", "memmod/visitor/__init__.py"} <= set(names)
    assert (tree / "build/lib/memmod/passing.py").is_file(), "the build left nothing that could leak"
    (tree / "memmod/passing.py").unlink()
    shutil.rmtree(tree / "memmod/visitor")
    names, _, _ = _build(tree, MEMMOD_EXT="0")
    assert not [name for name in names if "passing" in name or "visitor" in name]


def test_without_a_compiler_it_warns_and_builds_pure_python(tree):
    names, wheel, output = _build(tree, CXX="no-such-compiler")
    assert "WARNING: no C++ compiler found (no-such-compiler)" in output
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "no C++ compiler" in json.loads(zipfile.ZipFile(wheel).read("memmod/_build_info.json"))["reason"]


def test_asking_for_cuda_fails_in_words(tree):
    _, _, output = _build(tree, check=False, MEMMOD_CUDA="1")
    assert "this version has no CUDA sources" in output


def test_an_unknown_setting_fails_in_words(tree):
    _, _, output = _build(tree, check=False, MEMMOD_EXT="yes")
    assert "MEMMOD_EXT='yes' is not known; use one of 0, 1" in output


def test_without_torch_it_says_what_to_do(tree):
    (tree / "torch.py").write_text("raise ImportError('no torch here')\n")
    _, _, output = _build(tree, check=False, PYTHONPATH=str(tree))
    assert "torch cannot be imported" in output and "pip install --no-build-isolation ." in output
