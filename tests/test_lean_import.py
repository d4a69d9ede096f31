"""`from memmod import ModulatedLinear` is cheap and silent: no GPU, no compiler, no heavy library, no warning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import memmod
from memmod.ops.backends.cpu import extension

ROOT = Path(memmod.__file__).resolve().parent.parent
HEAVY = ("triton", "timm", "sklearn", "torchvision", "transformers", "typer", "rich", "jinja2", "msgspec", "vl_convert")
PROGRAM = f"""
import sys, torch
before = set(sys.modules)
from memmod import ModulatedLinear
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
heavy = sorted(new & set({HEAVY!r}))
assert not heavy, f"imported {{heavy}}"
assert not torch.cuda.is_initialized(), "CUDA was initialised"
assert "memmod._cpu" not in sys.modules, "kernels were loaded"
"""


def _run(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_import_is_lean_and_silent():
    result = _run(PROGRAM)
    assert result.returncode == 0, result.stderr
    assert result.stdout == result.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("heavy", ["sklearn", "rich"])
def test_the_check_notices_a_heavy_import(heavy):
    pytest.importorskip(heavy)
    result = _run(PROGRAM.replace("from memmod import ModulatedLinear", f"import {heavy}"))
    assert f"imported ['{heavy}']" in result.stderr


# What a machine with a GPU may lack: the benchmarks of networks run there.
WITHOUT = ("msgspec", "rich", "typer", "jinja2", "sklearn")
BENCHMARKED = f"""
import sys
sys.modules.update(dict.fromkeys({WITHOUT!r}))
import memmod.unlearning, memmod.zoo
memmod.zoo.create_model("resnet", 10, (1, 8, 8))
"""


def test_networks_and_their_unlearning_need_torch_and_timm_alone():
    result = _run(BENCHMARKED)
    assert result.returncode == 0, result.stderr


FIRST_CALL = """
import sys, torch
from memmod.functional import modulate_output
modulate_output(torch.randn(2, 3), torch.randn(4, 3), torch.tensor([1, -1]))
"""


@pytest.mark.slow
def test_first_call_is_silent():
    result = _run(FIRST_CALL)
    assert result.returncode == 0, result.stderr
    assert result.stdout == result.stderr == ""


@pytest.mark.slow
@pytest.mark.skipif(extension.unusable() is not None, reason="no compiled extension")
def test_the_check_notices_loaded_kernels():
    result = _run(FIRST_CALL + PROGRAM)
    assert "kernels were loaded" in result.stderr
