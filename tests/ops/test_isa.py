"""The kernels for lesser processors than this one are chosen by MEMMOD_CPU_ISA, and by the tests in one process."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import memmod
from memmod.functional import modulated_linear
from memmod.ops import dispatch
from memmod.ops.backends.cpu import extension
from tests.ops.backends import lesser_isas

ROOT = Path(memmod.__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(
    dispatch.availability()["cpu"] is not None, reason=f"cpu: {dispatch.availability()['cpu']}"
)


@pytest.fixture
def set_isa():
    """Switches the kernels; undone after the test."""
    before = extension.isa()
    yield extension.module().set_isa
    extension.module().set_isa(before)


@pytest.mark.parametrize("isa", lesser_isas())
def test_a_weight_packed_for_one_instruction_set_is_not_read_by_another(isa, set_isa):
    x, weight, memory = torch.randn(300, 96), torch.randn(130, 96), torch.randn(3, 130)
    index = torch.tensor([0])
    best = modulated_linear(x, weight, None, memory, index)
    set_isa(isa)
    assert extension.isa() == isa
    lesser = modulated_linear(x, weight, None, memory, index)
    assert torch.equal(lesser, modulated_linear(x, weight.clone(), None, memory, index))
    torch.testing.assert_close(lesser, best, rtol=1e-4, atol=1e-4)


def test_a_switch_to_an_unknown_instruction_set_changes_nothing(set_isa):
    before = extension.isa()
    with pytest.raises(ValueError, match="MEMMOD_CPU_ISA is 'mmx'; it must be portable, avx2"):
        set_isa("mmx")
    assert extension.isa() == before


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_no_code_for_an_instruction_set_runs_while_the_library_loads():
    """It would stop a processor without the instructions at `import memmod`; on a better one nothing is to be seen."""
    library = next(Path(memmod.__file__).parent.glob("_cpu*.so"))
    symbols = subprocess.run(["nm", str(library)], capture_output=True, text=True, check=True).stdout
    initialisers = re.findall(r"_GLOBAL__sub_I_\S+", symbols)
    assert initialisers, f"{library} has no symbols: build it without stripping them"
    assert [name for name in initialisers if re.search("kernels_|kAvx|avx512|kPortable", name)] == []


def run(isa: str, program: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"MEMMOD_CPU_ISA": isa}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_the_named_instruction_set_is_used():
    result = run("portable", "from memmod.info import collect; print(collect()['cpu_kernels'])")
    assert result.stdout.split() == ["portable"], result.stderr


@pytest.mark.slow
def test_an_unknown_instruction_set_is_an_error():
    program = (
        "import torch; from memmod.functional import modulate_output as m; "
        "m(torch.randn(2, 3), torch.randn(4, 3), torch.tensor([1, -1]))"
    )
    result = run("mmx", program)
    assert result.returncode == 1 and "MEMMOD_CPU_ISA is 'mmx'" in result.stderr
