"""`make gpu` without a GPU: each command ends by its time, what was found stays, and nothing needs what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_ratios
from benchmarks.cases import DTYPES, Case, NetworkCase
from benchmarks.gpu import ROOT, Stage
from benchmarks.gpu_variants import VARIANTS

# What such a machine may lack of memmod's own requirements and of the tests'.
MISSING = ("typer", "rich", "msgspec", "sklearn", "jinja2", "xdist", "pytest_benchmark", "ninja")
BLOCK = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python that has none of MISSING."""
    (tmp_path / "sitecustomize.py").write_text(BLOCK.format(missing=MISSING))
    return os.environ | {"PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def python(code: str) -> tuple[str, ...]:
    return sys.executable, "-u", "-c", code


@pytest.mark.slow
def test_a_stage_ends_by_its_time_and_the_next_one_runs(tmp_path: Path) -> None:
    slow = "import time\nprint('first')\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('summary')"
    every = (
        Stage("slow", 0.1, python(slow)),
        Stage("wrong", 0.9, python("import sys; print('broken'); sys.exit(3)")),
        Stage("last", 1.0, python("print('found')")),
    )
    # Python itself may take seconds to start on a machine that is busy.
    assert gpu.run_all(every, tmp_path, 20.0, os.environ) == 1
    ended = json.loads((tmp_path / "summary.json").read_text())
    assert [name for name, one in ended.items() if one["timed_out"]] == ["slow"]
    assert [one["returncode"] for one in ended.values()][1:] == [3, 0]
    assert [one["last_line"] for one in ended.values()] == ["summary", "broken", "found"]
    assert 1.5 < ended["slow"]["seconds"] < 10
    assert (tmp_path / "slow.log").read_text() == "first\nsummary\n"


@pytest.mark.slow
def test_a_stage_that_ignores_its_time_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    deaf = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('on')\ntime.sleep(60)"
    assert gpu.run_all((Stage("deaf", 1.0, python(deaf)),), tmp_path, 4.0, os.environ) == 0
    ended = json.loads((tmp_path / "summary.json").read_text())["deaf"]
    assert ended["timed_out"] and ended["returncode"] == -9 and ended["last_line"] == "on"


def test_every_stage_exists_and_its_time_is_later_than_the_one_before(tmp_path: Path) -> None:
    every = gpu.stages(tmp_path)
    ends = [stage.end for stage in every]
    assert ends == sorted(set(ends)) and ends[-1] == 1.0
    for path in (part for stage in every for part in stage.command[1:] if part.startswith(("tests/", "setup"))):
        assert (ROOT / path).exists(), path


def test_the_kernels_are_in_place_while_it_runs(tmp_path: Path) -> None:
    (tmp_path / "kernels/memmod_kernels").mkdir(parents=True)
    (tmp_path / "memmod").mkdir()
    link = tmp_path / "memmod/kernels"
    with pytest.raises(KeyboardInterrupt), gpu.kernels_in_place(tmp_path):
        assert link.samefile(tmp_path / "kernels/memmod_kernels")
        raise KeyboardInterrupt
    assert not link.is_symlink()
    link.symlink_to("nowhere")
    with gpu.kernels_in_place(tmp_path):
        assert link.samefile(tmp_path / "kernels/memmod_kernels")
    link.mkdir()
    with gpu.kernels_in_place(tmp_path):
        assert link.is_dir() and not link.is_symlink()
    assert link.is_dir()


@pytest.mark.slow
def test_nothing_that_runs_on_a_gpu_needs_what_may_be_missing(bare: dict[str, str]) -> None:
    program = (
        "import benchmarks.gpu, benchmarks.gpu_ratios, benchmarks.retune, benchmarks.tuning, benchmarks.layers\n"
        "import tests.ops.test_cuda, tests.ops.test_gpu_types, tests.ops.test_modulated_linear\n"
        "import tests.ops.test_modulated_conv2d, tests.ops.test_modulate_output, tests.ops.test_determinism\n"
        "import tests.ops.test_gradients, tests.ops.test_torch_library"
    )
    done = subprocess.run(python(program), cwd=ROOT, env=bare, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_gpu_tests_are_collected_there_and_each_runs_once(bare: dict[str, str], tmp_path: Path) -> None:
    found = {}
    for stage in gpu.stages(tmp_path):
        if "pytest" in stage.command:
            # One process shows what it collects.
            command = [*stage.command, "-p", "no:xdist", "--collect-only", "-qq"]
            command = [part for part in command if not part.startswith("-n=")]
            done = subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stdout + done.stderr
            found[stage.name] = [line for line in done.stdout.splitlines() if "::" in line]
    assert {line.partition("::")[0] for line in found["types"]} == {"tests/ops/test_gpu_types.py"}
    assert len(found["types"]) == (1 + len(VARIANTS)) * len(DTYPES) * 6 and "linear" in found["types"][0]
    assert any(line.startswith("tests/ops/test_cuda.py::") for line in found["tests"])
    assert not set(found["types"]) & set(found["tests"])


def test_the_ratios_begin_with_large_layers_in_every_dtype() -> None:
    order = list(gpu_ratios.in_order())
    assert len(order) == len(set(map(str, order))), "a case is measured twice"
    layers = [case for case, _ in order[: next(i for i, (c, _) in enumerate(order) if isinstance(c, NetworkCase))]]
    assert {(case.group.split()[0], case.dtype) for case in layers} == {
        (kind, dtype) for kind in ("linear", "conv") for dtype in DTYPES
    }


def test_ratios_are_written_after_each_case_and_a_case_that_fails_costs_no_other(tmp_path: Path) -> None:
    cases = [
        Case("linear", "good", 4, 16, 24, tokens=5),
        Case("conv", "broken", 4, 6, 8, kernel=3, side=6, groups=4),
        Case("linear", "after", 2, 16, 24),
    ]
    failed = gpu_ratios.measure_all(((case, "forward") for case in cases), "cpu", tmp_path, ("plain", "memmod"))
    lines = [json.loads(line) for line in (tmp_path / "ratios.jsonl").read_text().splitlines()]
    assert failed == 1
    broken = [line for line in lines if "broken" in line["case"]]
    assert len(broken) == 1 and "Error: " in broken[0]["note"]
    for name in ("good", "after"):
        ratios = {line["rival"]: line.get("ratio") for line in lines if name in line["case"]}
        assert ratios["memmod"] > 0 and ratios["plain"] > 0
    assert "memmod" in (tmp_path / "ratios.txt").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert gpu.main(["--out", str(tmp_path / "out")]) == 1
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
