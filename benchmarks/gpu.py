"""`python -m benchmarks.gpu [--seconds S] [--out FOLDER]`: what to know of memmod on this GPU, the most valuable first.

With nothing but torch, Triton, nvcc, pytest and timm, and without a network: builds the extensions in place against
the torch that is installed, then runs the GPU tests, the ratios to plain PyTorch, and `benchmarks.retune`. Each ends
when its share of the time does, and what it has found by then is in the folder: $OUT, or build/gpu.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# Seconds that pytest has to write its summary when its time is over.
GRACE = 15.0


class Stage(NamedTuple):
    """A command, and the share of all the time by which it has to have ended; what is left over is the next one's."""

    name: str
    end: float
    command: tuple[str, ...]


def stages(out: Path) -> tuple[Stage, ...]:
    python = sys.executable
    first = "tests/ops/test_gpu_types.py"
    # A file that needs what is not installed is reported, and the others run.
    pytest = ("-m", "pytest", "-v", "-m", "gpu", "--continue-on-collection-errors", "-p", "no:cacheprovider")
    if importlib.util.find_spec("xdist") is not None:
        # Most of the time is Triton's, compiling: 1,500 tests in 71 s by 12 processes.
        pytest += (f"-n={min(12, os.cpu_count() or 1)}",)
    return (
        Stage("build", 0.3, (python, "setup.py", "build_ext", "--inplace")),
        Stage("types", 0.38, (python, *pytest, first)),
        Stage("tests", 0.55, (python, *pytest, "tests/ops", f"--ignore={first}")),
        Stage("ratios", 0.85, (python, "-m", "benchmarks.gpu_ratios", "--out", str(out))),
        Stage("tables", 1.0, (python, "-m", "benchmarks.retune")),
    )


def run(stage: Stage, out: Path, deadline: float, environment: Mapping[str, str]) -> dict[str, object]:
    """Runs one stage, its output in OUT/NAME.log as it comes; how it ended."""
    start = time.monotonic()
    log = out / f"{stage.name}.log"
    timed_out = False
    with open(log, "w") as file:
        process = subprocess.Popen(
            stage.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        for end, number in ((deadline, signal.SIGINT), (deadline + GRACE, signal.SIGKILL)):
            try:
                process.wait(max(0.0, end - time.monotonic()))
                break
            except subprocess.TimeoutExpired:
                timed_out = True
                os.killpg(process.pid, number)
        code = process.wait()
    lines = log.read_text(errors="replace").strip().splitlines()
    return {
        "returncode": code,
        "timed_out": timed_out,
        "seconds": round(time.monotonic() - start, 1),
        "last_line": lines[-1] if lines else "",
    }


@contextmanager
def kernels_in_place(root: Path = ROOT) -> Iterator[None]:
    """The kernels' package is where an installation would put it: a build in place leaves it in its own folder."""
    link = root / "memmod/kernels"
    if link.exists():
        yield
        return
    link.unlink(missing_ok=True)
    link.symlink_to("../kernels/memmod_kernels")
    try:
        yield
    finally:
        link.unlink()


def run_all(every: Sequence[Stage], out: Path, seconds: float, environment: Mapping[str, str]) -> int:
    """Runs the stages one after the other; OUT/summary.json says after each how all so far ended."""
    start = time.monotonic()
    ended: dict[str, dict[str, object]] = {}
    for stage in every:
        print(f"== {stage.name}, until {stage.end * seconds:.0f} s: {' '.join(stage.command)}", flush=True)
        result = ended[stage.name] = run(stage, out, start + stage.end * seconds, environment)
        how = "ended by its time" if result["timed_out"] else f"exit status {result['returncode']}"
        print(f"   {how} after {result['seconds']} s: {result['last_line']}", flush=True)
        beside = out / "summary.tmp"
        beside.write_text(json.dumps(ended, indent=2) + "\n")
        beside.replace(out / "summary.json")
    return int(any(result["returncode"] != 0 and not result["timed_out"] for result in ended.values()))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="for everything together (default 600)")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "build/gpu"))
    given = parser.parse_args(arguments)
    import torch

    if not torch.cuda.is_available():
        print(f"benchmarks.gpu needs an NVIDIA GPU, and torch {torch.__version__} sees none", file=sys.stderr)
        return 1
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    major, minor = torch.cuda.get_device_capability()
    # Code for this card alone compiles in a fraction of the time.
    defaults = {"MEMMOD_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}", "PYTHONUNBUFFERED": "1"}
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; results in {out}", flush=True)
    with kernels_in_place():
        return run_all(stages(out), out, given.seconds, defaults | os.environ)


if __name__ == "__main__":
    sys.exit(main())
