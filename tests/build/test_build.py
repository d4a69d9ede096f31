"""What setup.py builds: the contents of sdist and wheel, both installed and run, and its behaviour without torch, a
compiler or a CUDA toolkit.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

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


BUILD_SDIST = "import sys; from setuptools.build_meta import build_sdist; print(build_sdist(sys.argv[1]))"


def _sdist(tree: Path, **environment: str) -> Path:
    """The tree's sdist, by the hook that pip and build call."""
    command = [sys.executable, "-c", BUILD_SDIST, tree.parent / "sdists"]
    env = {**os.environ, **environment}
    result = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    (sdist,) = (tree.parent / "sdists").glob("*.tar.gz")
    return sdist


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


SMOKE = """
import torch
from memmod import modulate
from memmod.data import load_data
from memmod.evaluation import scorecard
from memmod.unlearning import Trainer, preset
from memmod.zoo import TrainConfig, create_model, train_model

data = load_data("digits")
base = create_model("resnet", data.num_classes, data.input_shape)
train_model(base, data, TrainConfig(epochs=1, batch_size=64))
wf = modulate(base, class_names=data.class_names)
Trainer(wf, data, preset("fast", wf, steps=2)).fit()
images = data.test.batch(torch.arange(4))
assert not torch.equal(wf(images), wf(images, forget="3"))
assert torch.allclose(wf.bake("3")(images), wf(images, forget="3"), atol=1e-4)
"""


def _install_and_run(wheel: Path, folder: Path) -> dict:
    """Installs the wheel into an environment with this one's packages but not its memmod, and unlearns digits there;
    what `memmod.info` collects.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "torch.pth").write_text(f"{Path(torch.__file__).resolve().parent.parent}\n")
    python = folder / "bin/python"

    def run(*command: str | Path) -> str:
        env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel)
    run(python, "-c", SMOKE)
    assert f"loaded from     {site}/memmod" in run(folder / "bin/memmod", "info")
    assert "Usage: memmod" in run(folder / "bin/memmod", "--help")
    return json.loads(run(python, "-c", "import json, memmod.info; print(json.dumps(memmod.info.collect()))"))


def test_the_sdist_holds_all_that_a_build_reads_and_needs_no_torch(tree):
    (tree / "tests").mkdir()
    (tree / "tests/test_something.py").write_text("")
    wanted = _files(tree) - {"tests/test_something.py"}
    (tree / "torch.py").write_text("raise ImportError('no torch here')\n")
    sdist = _sdist(tree, PYTHONPATH=str(tree), CXX="no-such-compiler")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if not archive.getmember(name).isdir()}
    made = {name for name in names if name in ("PKG-INFO", "setup.cfg") or name.startswith("memmod_torch.egg-info/")}
    assert names - made == wanted


@pytest.mark.exhaustive
def test_the_sdist_builds_the_wheel_that_the_tree_builds_and_it_runs(tree, tmp_path):
    of_tree, _, _ = _build(tree, MEMMOD_EXT="0")
    with tarfile.open(_sdist(tree)) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    of_sdist, wheel, _ = _build(unpacked, MEMMOD_EXT="0")
    assert sorted(of_sdist) == sorted(of_tree)
    facts = _install_and_run(wheel, tmp_path / "environment")
    assert "it was built with MEMMOD_EXT=0" in facts["backends"]["cpu"]


def _assert_holds_the_package(names: list[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"memmod", f"memmod_torch-{memmod.__version__}.dist-info"}
    expected = {"__init__.py", "py.typed", "kernels/__init__.py", "ops/backends/reference.py", "nn/linear.py"}
    expected |= {f"report/templates/{path.name}" for path in (ROOT / "memmod/report/templates").iterdir()}
    assert {f"memmod/{name}" for name in expected} <= set(names)
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "memmod").rglob("*.py")}
    assert sources <= set(names)


@pytest.mark.exhaustive
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_wheel_holds_the_package_and_its_extension_only(tree, tmp_path):
    names, wheel, _ = _build(tree, MEMMOD_CUDA="0")
    _assert_holds_the_package(names)
    info = json.loads(zipfile.ZipFile(wheel).read("memmod/_build_info.json"))
    assert info["torch"] == torch.__version__ and info["compiler"] and "-O3" in info["flags"]
    assert f"memmod/{info['extension']}" in names
    assert info["cuda"] == {"extension": None, "reason": "it was built with MEMMOD_CUDA=0"}
    assert "-march=native" not in info["flags"] and "-ffast-math" not in info["flags"]
    assert not list((tree / "memmod").glob("_cpu*")), "a wheel's build writes nothing into the source folder"
    facts = _install_and_run(wheel, tmp_path / "environment")
    assert facts["backends"]["cpu"] is None and facts["build"] == {**info, "cuda": facts["build"]["cuda"]}


def test_without_extension_the_wheel_is_pure_python(tree):
    names, wheel, _ = _build(tree, MEMMOD_EXT="0")
    _assert_holds_the_package(names)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in names if name.endswith((".so", ".cpp", ".h"))]
    info = json.loads(zipfile.ZipFile(wheel).read("memmod/_build_info.json"))
    assert info["extension"] is None and "MEMMOD_EXT=0" in info["reason"]
    assert info["cuda"] == {"extension": None, "reason": info["reason"]}


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


def test_an_unknown_setting_fails_in_words(tree):
    _, _, output = _build(tree, check=False, MEMMOD_EXT="yes")
    assert "MEMMOD_EXT='yes' is not known; use one of 0, 1" in output


def test_without_torch_it_says_what_to_do(tree):
    (tree / "torch.py").write_text("raise ImportError('no torch here')\n")
    _, _, output = _build(tree, check=False, PYTHONPATH=str(tree))
    assert "torch cannot be imported" in output and "pip install --no-build-isolation ." in output


# A toolkit that compiles nothing; VERSION and CODES are what it says of itself.
NVCC = """#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release VERSION, V99" ;;
  --list-gpu-code) printf "CODES" ;;
  --dryrun) echo "#$ _SPACE_= " >&2; echo "#$ _HERE_=$(dirname "$0")" >&2 ;;
esac
"""
ALL_CODES = r"sm_75\nsm_80\nsm_86\nsm_89\nsm_90\nsm_100\nsm_120\nsm_121\n"


@pytest.fixture
def script(monkeypatch) -> ModuleType:
    """setup.py as a module, in an environment that says nothing about CUDA; os.environ is as before afterwards."""
    for name in ("CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "MEMMOD_CUDA", "MEMMOD_EXT", "MAX_JOBS", "CXX"):
        # Set first: monkeypatch then also deletes what the code under test sets.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    spec = importlib.util.spec_from_file_location("memmod_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _executable(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)
    return file


@pytest.fixture
def toolkit(tmp_path) -> Callable[..., Path]:
    def make(version: str = "13.0", codes: str = ALL_CODES) -> Path:
        root = tmp_path / f"cuda-{version}"
        _executable(root / "bin/nvcc", NVCC.replace("VERSION", version).replace("CODES", codes))
        return root

    return make


def test_the_standard_is_not_left_to_torch(script):
    assert "-std=c++20" in script.CXX_FLAGS and "-std=c++20" in script.NVCC_FLAGS


def test_an_old_setuptools_ends_in_words(script):
    script.check_setuptools("77.0.1")
    script.check_setuptools("84.2.1")
    with pytest.raises(SystemExit, match="setuptools 65.5.0 .*pip install 'setuptools>=77'"):
        script.check_setuptools("65.5.0")


def test_the_toolkit_is_where_nvcc_itself_is(script, toolkit, tmp_path, monkeypatch):
    root = toolkit()
    wrapper = _executable(tmp_path / "elsewhere/bin/nvcc", f'#!/bin/sh\nexec {root}/bin/nvcc "$@"\n')
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    assert script.find_toolkit() == root


def test_the_toolkit_is_found_behind_a_link(script, toolkit, tmp_path, monkeypatch):
    root = toolkit()
    (root / "bin/nvcc").write_text("#!/bin/sh\nexit 1\n")  # one that does not say where it is
    (tmp_path / "links").mkdir()
    (tmp_path / "links/nvcc").symlink_to(root / "bin/nvcc")
    monkeypatch.setenv("PATH", f"{tmp_path / 'links'}:{os.environ['PATH']}")
    assert script.find_toolkit() == root


def test_cuda_home_goes_before_the_path(script, toolkit, tmp_path, monkeypatch):
    on_path, named = toolkit("12.8"), toolkit("13.0")
    monkeypatch.setenv("PATH", f"{on_path / 'bin'}:{os.environ['PATH']}")
    assert script.find_toolkit() == on_path
    monkeypatch.setenv("CUDA_HOME", str(named))
    assert script.find_toolkit() == named
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(script.NoCuda, match="nowhere' has no bin/nvcc"):
        script.find_toolkit()


def test_without_nvcc_the_toolkit_is_missing_in_words(script, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(script.NoCuda, match="no nvcc on the PATH"):
        script.find_toolkit()


def test_the_toolkit_has_the_major_version_of_torch(script, toolkit, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    assert script.toolkit_version(toolkit("13.0")) == "13.0"
    with pytest.raises(script.NoCuda, match=r"cuda-12\.9 is CUDA 12\.9, and torch .* for CUDA 13"):
        script.toolkit_version(toolkit("12.9"))


@pytest.mark.parametrize(
    ("codes", "listed", "expected"),
    [
        (ALL_CODES, "", ["8.0", "8.6", "8.9", "9.0", "10.0", "12.0+PTX"]),
        (r"sm_52\nsm_80\nsm_90\n", "", ["8.0", "9.0+PTX"]),
        (ALL_CODES, "8.0 9.0+PTX", ["8.0", "9.0+PTX"]),
        (ALL_CODES, " 8.0; 12.1;;9.0a ", ["8.0", "12.1", "9.0a"]),
        (ALL_CODES, "7.5 8.6 8.6", ["8.6"]),
    ],
)
def test_architectures(script, toolkit, monkeypatch, codes, listed, expected):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    assert script.architectures(toolkit(codes=codes) / "bin/nvcc") == expected


@pytest.mark.parametrize("listed", ["Ampere", "8.0,9.0", "80", "8.0 13.7", "+PTX"])
def test_an_unknown_architecture_fails_in_words(script, toolkit, monkeypatch, listed):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    with pytest.raises(SystemExit, match="in TORCH_CUDA_ARCH_LIST='.*use some of 7.5, 8.0, .*, 12.1, with"):
        script.architectures(toolkit() / "bin/nvcc")


def test_architectures_that_the_kernels_do_not_serve_are_no_cuda(script, toolkit, monkeypatch):
    with pytest.raises(script.NoCuda, match="compiles for none of 8.0, "):
        script.architectures(toolkit(codes=r"sm_60\n") / "bin/nvcc")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5+PTX")
    with pytest.raises(script.NoCuda, match="names nothing from 8.0 on"):
        script.architectures(toolkit() / "bin/nvcc")


def test_gencode_options(script):
    assert script.gencode(["8.0", "9.0+PTX", "12.0+PTX"]) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90,code=compute_90",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


def test_jobs_fit_cores_memory_and_max_jobs(script, tmp_path, monkeypatch):
    meminfo, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    assert script.jobs(meminfo, limit, cores=6) == 6
    meminfo.write_text(f"MemTotal: 1 kB\nMemAvailable:   {4 * script.NVCC_BYTES // 1024} kB\n")
    limit.write_text("max\n")
    assert script.jobs(meminfo, limit, cores=6) == 4
    limit.write_text(f"{3 * script.NVCC_BYTES}\n")
    assert script.jobs(meminfo, limit, cores=6) == 3
    monkeypatch.setenv("MAX_JOBS", "2")
    assert script.jobs(meminfo, limit, cores=6) == 2
    limit.write_text("1000\n")
    assert script.jobs(meminfo, limit, cores=6) == 1


def test_the_extension_is_made_of_all_cuda_sources(script, toolkit, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    root = toolkit()
    cpp_extension = importlib.import_module("torch.utils.cpp_extension")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(root))
    monkeypatch.setenv("CUDA_HOME", str(root))
    extension, facts = script.cuda_extension("g++")
    kernels = [path.stem for path in sorted((ROOT / "csrc/cuda").glob("*.cu"))]
    assert facts["kernels"] == kernels and facts["toolkit"] == "13.0" and facts["flags"] == script.NVCC_FLAGS
    assert set(extension.sources) == {*(f"csrc/cuda/{name}.cu" for name in kernels), "csrc/cuda/module.cpp"}
    assert set(script.gencode(facts["architectures"])) < set(extension.extra_compile_args["nvcc"])
    assert ("TORCH_TARGET_VERSION", script.STABLE_ABI) in extension.define_macros
    assert "torch_python" not in extension.libraries and extension.py_limited_api


def _setup(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in ("CUDA_HOME", "CUDA_PATH")}
    return subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=tree,
        env={**env, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def no_nvcc(tmp_path) -> dict[str, str]:
    """An environment with a C++ compiler, and no CUDA toolkit."""
    compiler = _executable(tmp_path / "compiler/c++", "#!/bin/sh\n")
    return {"PATH": str(compiler.parent), "CXX": str(compiler)}


@pytest.mark.skipif(torch.version.cuda is None, reason="torch without CUDA needs no toolkit")
def test_without_nvcc_it_says_so_and_builds_for_the_cpu(tree, no_nvcc):
    result = _setup(tree, MEMMOD_CUDA="auto", **no_nvcc)
    assert result.returncode == 0, result.stderr
    assert "building without the CUDA extension, because there was no nvcc on the PATH" in result.stderr


def test_asking_for_cuda_fails_in_words(tree, no_nvcc):
    result = _setup(tree, MEMMOD_CUDA="1", **no_nvcc)
    missing = "is built without CUDA. Install" if torch.version.cuda is None else "there was no nvcc on the PATH"
    assert result.returncode == 1
    assert "MEMMOD_CUDA=1 asks for the CUDA extension, but " in result.stderr and missing in result.stderr
    assert "MEMMOD_CUDA=0 builds without it" in result.stderr


def test_asking_for_cuda_without_extensions_fails_in_words(tree):
    result = _setup(tree, MEMMOD_CUDA="1", MEMMOD_EXT="0")
    assert result.returncode == 1 and "MEMMOD_CUDA=1 asks" in result.stderr and "MEMMOD_EXT=0" in result.stderr


def test_asking_for_cuda_of_a_torch_without_it_fails_in_words(script, monkeypatch, no_nvcc):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setenv("CXX", no_nvcc["CXX"])
    monkeypatch.setenv("MEMMOD_CUDA", "1")
    with pytest.raises(SystemExit, match=f"torch {torch.__version__.replace('+', '.')} is built without CUDA"):
        script.extensions()
    monkeypatch.setenv("MEMMOD_CUDA", "auto")
    (extension,), facts = script.extensions()
    assert extension.name == "memmod._cpu" and "without CUDA" in facts["cuda"]["reason"]


def test_an_editable_install_leaves_no_stale_extension(script, tmp_path):
    for name in ("_cpu.some-abi.so", "_cuda.abi3.so", "other.so"):
        (tmp_path / name).touch()
    script.remove(tmp_path, "_cpu*.so", "_cuda*.so")
    assert [path.name for path in tmp_path.iterdir()] == ["other.so"]
