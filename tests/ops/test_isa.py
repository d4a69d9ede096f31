"""The kernels for lesser processors than this one: the same tests, in a process that is told to use them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import memmod
from memmod.ops import dispatch
from memmod.ops.backends.cpu import register as extension

ROOT = Path(memmod.__file__).resolve().parent.parent
ISAS = ("portable", "avx2", "avx512", "avx512_bf16", "amx")
FILES = ("modulated_linear", "modulated_conv2d", "modulate_output", "frozen", "determinism")

pytestmark = pytest.mark.skipif(
    dispatch.availability()["cpu"] is not None, reason=f"cpu: {dispatch.availability()['cpu']}"
)


def run(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"MEMMOD_CPU_ISA": isa}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_the_op_tests_pass_with_the_kernels_of(isa):
    if ISAS.index(isa) >= ISAS.index(extension.isa()):
        pytest.skip(f"this process runs {extension.isa()}")
    files = [f"tests/ops/test_{name}.py" for name in FILES]
    result = run(isa, "-m", "pytest", "-q", "-k", "cpu", "-p", "no:cacheprovider", *files)
    assert result.returncode == 0, result.stdout[-3000:]
    assert "passed" in result.stdout


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_no_code_for_an_instruction_set_runs_while_the_library_loads():
    """It would stop a processor without the instructions at `import memmod`; on a better one nothing is to be seen."""
    library = next(Path(memmod.__file__).parent.glob("_cpu*.so"))
    symbols = subprocess.run(["nm", str(library)], capture_output=True, text=True, check=True).stdout
    initialisers = re.findall(r"_GLOBAL__sub_I_\S+", symbols)
    assert initialisers, f"{library} has no symbols: build it without stripping them"
    assert [name for name in initialisers if re.search("kernels_|kAvx|avx512|kPortable", name)] == []


def test_the_named_instruction_set_is_used():
    result = run("portable", "-c", "from memmod.info import collect; print(collect()['cpu_kernels'])")
    assert result.stdout.split() == ["portable"], result.stderr


def test_an_unknown_instruction_set_is_an_error():
    program = (
        "import torch; from memmod.functional import modulate_output as m; "
        "m(torch.randn(2, 3), torch.randn(4, 3), torch.tensor([1, -1]))"
    )
    result = run("mmx", "-c", program)
    assert result.returncode == 1 and "MEMMOD_CPU_ISA is 'mmx'" in result.stderr
