"""Installs memmod's sdist beside other releases of Python and torch, each pair in a throw-away environment, runs tests
and a small unlearning there, and writes docs/compatibility.md.

python -m tests.compatibility [--only "3.12 2.14.1"] [--keep]

An environment takes 8 GB, of which nothing stays but pip's downloads (build/compat/pip, removed at the end) and a file
of results, build/compat/PYTHON-TORCH.json; the page shows all of these that there are, and `--only` renews one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build/compat"
PAGE = ROOT / "docs/compatibility.md"
REQUIREMENTS = ROOT / "requirements/setup.txt"
# What an environment and its downloads take at most.
NEEDED_BYTES = 16 * 2**30
# torchvision's release for a torch's.
TORCHVISION = {"2.10.0": "0.25.0", "2.11.0": "0.26.0"}
# Chosen to touch what differs by release: every op and its registration, layers, surgery, files, compiled models.
TESTS = (
    "tests/ops/test_modulated_linear.py",
    "tests/ops/test_modulated_conv2d.py",
    "tests/ops/test_modulate_output.py",
    "tests/ops/test_torch_library.py",
    "tests/ops/test_eager.py",
    "tests/nn",
    "tests/surgery/test_modify.py",
    "tests/test_memory_file.py",
    "tests/test_model.py",
    "tests/test_selection.py",
    "tests/test_tracing.py",
)
MARKERS = "not slow and not exhaustive and not gpu"
# A pass that shows that the commands work, not what they reach.
SMOKE = (
    ("train", "--data", "digits", "--model", "resnet", "--epochs", "2", "--out", "base", "--overwrite"),
    ("unlearn", "--base", "base", "--preset", "fast", "--steps", "40", "--out", "unlearned", "--overwrite"),
    ("evaluate", "unlearned", "--json"),
)
FACTS = "import json, memmod.info; print(json.dumps(memmod.info.collect()))"


@dataclass(frozen=True)
class Pair:
    python: str
    torch: str

    @property
    def name(self) -> str:
        return f"{self.python}-{self.torch}"


@dataclass
class Result:
    """What was found of a pair; `failed` is the step that failed, with the last lines of its output."""

    python: str
    torch: str
    cuda: str = ""
    others: str = ""
    kernels: str = ""
    tests: str = ""
    compiled: str = ""
    pure: str = ""
    failed: str = ""
    seconds: dict[str, float] = field(default_factory=dict)


class StepFailed(Exception):
    """A step that failed, with its output."""


def newest() -> str:
    """The torch that the requirements pin, with which all other tests run."""
    return pin("torch")


def pin(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", REQUIREMENTS.read_text(), re.M)
    if found is None:
        raise SystemExit(f"{REQUIREMENTS} pins no {package}")
    return found[1]


def pairs() -> list[Pair]:
    """The oldest Python with the newest torch and so on, and this project's own Python with the older torches."""
    pythons = [Pair(python, newest()) for python in ("3.10", "3.11", "3.12", "3.13")]
    return [Pair("3.11", torch) for torch in TORCHVISION] + pythons


def find_python(version: str) -> Path | None:
    """An interpreter of that version that runs: on the PATH, or one of pyenv's."""
    on_path = shutil.which(f"python{version}")
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for candidate in [*([Path(on_path)] if on_path else []), *sorted(kept.glob(f"{version}.*/bin/python"))]:
        command = [candidate, "-c", "import ensurepip, sys; print('%d.%d' % sys.version_info[:2])"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0 and result.stdout.strip() == version:
            return candidate
    return None


def requirements(torch: str) -> str:
    """The pinned requirements, with another torch and its torchvision."""
    text = REQUIREMENTS.read_text()
    if torch != newest():
        # torch 2.11 refuses setuptools from 82 on; memmod takes any from 77 on.
        text = re.sub(r"^setuptools==.*$", "setuptools>=77", text, flags=re.M)
    text = re.sub(r"^torch==.*$", f"torch=={torch}", text, flags=re.M)
    torchvision = TORCHVISION.get(torch, pin("torchvision"))
    text = re.sub(r"^torchvision==.*$", f"torchvision=={torchvision}", text, flags=re.M)
    return text + "".join(line for line in (ROOT / "requirements/dev.txt").open() if re.match(r"pytest==", line))


class Environment:
    """A virtual environment in a folder of its own, with copies of the tests and none of the sources."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = WORK / f"{folder.name}.log"
        self.seconds: dict[str, float] = {}
        self.log.write_text("")

    def run(self, step: str, command: Sequence[str | Path], **environment: str) -> str:
        """Standard output of a command that runs in the folder.

        Raises:
            StepFailed: it ended with another code than 0.
        """
        start = time.perf_counter()
        env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        env |= {"PIP_CACHE_DIR": str(WORK / "pip"), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "NO_COLOR": "1"}
        # No GPU takes part, and each pair would compile other kernels: a toolkit fits one major version of CUDA.
        env |= {"OMP_NUM_THREADS": "1", "MEMMOD_CUDA": "0", **environment}
        result = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        self.seconds[step] = round(self.seconds.get(step, 0) + time.perf_counter() - start, 1)
        with self.log.open("a") as log:
            print("$", *command, "\n", result.stdout, result.stderr, file=log)
        if result.returncode:
            tail = "\n".join((result.stdout + result.stderr).strip().splitlines()[-8:])
            raise StepFailed(f"{step} (exit {result.returncode}): {tail}")
        return result.stdout

    @property
    def python(self) -> Path:
        return self.folder / "venv/bin/python"

    def install(self, sdist: Path, **environment: str) -> None:
        options = ("--quiet", "--no-build-isolation", "--no-deps", "--force-reinstall", "--no-cache-dir")
        self.run("build", [self.python, "-m", "pip", "install", *options, sdist], **environment)

    def smoke(self) -> str:
        """What a small unlearning on the digits reaches."""
        output = ""
        for arguments in SMOKE:
            output = self.run("smoke", [self.folder / "venv/bin/memmod", *arguments])
        card = json.loads(output)
        found = next(method for method in card["methods"] if method["method"] == "memmod")
        return f"{found['mean_forget']:.1%} of {card['base_accuracy']:.1%}"

    def facts(self) -> dict[str, Any]:
        return json.loads(self.run("info", [self.python, "-c", FACTS]))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def build_sdist() -> Path:
    """The sdist of the tree, in build/compat/dist."""
    folder = WORK / "dist"
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-c", "import sys; from setuptools.build_meta import build_sdist as b; b(sys.argv[1])"]
    subprocess.run([*command, str(folder)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (sdist,) = folder.glob("*.tar.gz")
    return sdist


def check(pair: Pair, sdist: Path, keep: bool) -> Result:
    """All steps of one pair, up to the first that fails."""
    interpreter = find_python(pair.python)
    if interpreter is None:
        return Result(pair.python, pair.torch, failed=f"no python{pair.python} on this machine")
    folder = WORK / pair.name
    folder.mkdir(parents=True, exist_ok=True)
    environment = Environment(folder)
    result = Result(pair.python, pair.torch, seconds=environment.seconds)
    try:
        _steps(environment, interpreter, result, sdist)
    except StepFailed as error:
        result.failed = str(error)
    finally:
        if not keep:
            environment.remove()
    return result


def _steps(environment: Environment, interpreter: Path, result: Result, sdist: Path) -> None:
    folder, python = environment.folder, environment.python
    if not python.exists():
        environment.run("install", [interpreter, "-m", "venv", folder / "venv"])
    (folder / "requirements.txt").write_text(requirements(result.torch))
    environment.run("install", [python, "-m", "pip", "install", "--quiet", "-r", "requirements.txt"])
    shutil.copytree(ROOT / "tests", folder / "tests", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)

    environment.install(sdist)
    facts = environment.facts()
    result.python, result.cuda = facts["python"], facts["cuda"] or "none"
    result.others = f"torchvision {facts['torchvision']}, timm {facts['timm']}, Triton {facts['triton']}"
    result.kernels = facts["cpu_kernels"] or "none"
    if facts["backends"]["cpu"] is not None:
        raise StepFailed(f"info: the CPU extension is not there: {facts['backends']['cpu']}")
    result.compiled = environment.smoke()
    output = environment.run("tests", [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", MARKERS, *TESTS])
    result.tests = re.sub(r" in .*|, \d+ (warnings?|deselected)|=", "", output.strip().splitlines()[-1]).strip()

    environment.install(sdist, MEMMOD_EXT="0")
    if environment.facts()["backends"]["cpu"] is None:
        raise StepFailed("info: MEMMOD_EXT=0 installed the CPU extension")
    result.pure = environment.smoke()


HEAD = """# Compatibility

`make compat` writes this page. Each row is an environment of its own: memmod installed from its sdist, its C++
extension compiled against that torch, `memmod train`, `unlearn` and `evaluate` on the digits, then tests of every op
with each backend that the processor has, of layers, surgery, memory files and compiled models; then installed once more
as pure Python (`MEMMOD_EXT=0`), with the same commands. Torch comes from PyPI, with the CUDA that it was built for; no
GPU took part, and the CUDA extension was left out.

| Python | torch | CUDA | beside | CPU kernels | tests | digits, compiled | digits, pure Python | |
|---|---|---|---|---|---|---|---|---|
"""
FOOT = """
The columns of the digits: mean accuracy on a selected class after 40 steps, of what the network without a selection
reaches after two epochs: they show that the commands work, not what the recipe reaches.
"""


def page(results: Sequence[Result]) -> str:
    """docs/compatibility.md: a row a pair, and below the table what failed."""
    rows, failures = [], []
    for found in results:
        mark = "**failed**" if found.failed else "works"
        cells = (found.python, found.torch, found.cuda, found.others, found.kernels, found.tests)
        rows.append(f"| {' | '.join((*cells, found.compiled, found.pure, mark))} |")
        if found.failed:
            failures.append(f"Python {found.python}, torch {found.torch}:\n\n```\n{found.failed}\n```\n")
    text = HEAD + "\n".join(rows) + "\n" + FOOT
    return text + ("\n## What failed\n\n" + "\n".join(failures) if failures else "")


def _sort_key(result: Result) -> tuple[list[int], list[int]]:
    return [int(part) for part in result.torch.split(".")], [int(part) for part in result.python.split(".")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", metavar="'PYTHON TORCH'", help="this pair; may be repeated")
    parser.add_argument("--keep", action="store_true", help="leave environments and downloads in build/compat")
    arguments = parser.parse_args()
    chosen = [Pair(*text.split()) for text in arguments.only] if arguments.only else pairs()
    WORK.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(WORK).free
    if free < NEEDED_BYTES:
        sys.exit(f"{WORK} has {free / 2**30:.0f} GiB free; an environment needs {NEEDED_BYTES / 2**30:.0f}")
    sdist = build_sdist()
    failed = False
    for pair in chosen:
        result = check(pair, sdist, arguments.keep)
        failed |= bool(result.failed)
        (WORK / f"{pair.name}.json").write_text(json.dumps(asdict(result), indent=2))
        print(f"{pair.name}: {result.failed or result.tests} {result.seconds}", flush=True)
        kept = [Result(**json.loads(file.read_text())) for file in WORK.glob("*.json")]
        PAGE.write_text(page(sorted(kept, key=_sort_key)))
    if not arguments.keep:
        shutil.rmtree(WORK / "pip", ignore_errors=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
