"""Builds memmod: the Python packages, and the compiled extensions where torch and a C++ compiler are found: the CPU's,
and with a CUDA toolkit that for NVIDIA GPUs.

Environment: MEMMOD_EXT=0 builds pure Python; MEMMOD_CUDA=auto|0|1; CUDA_HOME; TORCH_CUDA_ARCH_LIST; MEMMOD_SANITIZE=1
builds for `make sanitize`; MAX_JOBS; CXX.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import setuptools
from setuptools import Extension, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
BUILD_INFO = "_build_info.json"
# No contraction: a·b + c would round in vectors and in the elements behind them differently. The -fno- options change
# no result, and let loops with fp16 conversions become vectors. torch brings the OpenMP library, so it is not linked.
CXX_FLAGS = ["-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-Wall"]
# torch 2.11 compiles as C++17 unless told otherwise.
CXX_FLAGS += ["-std=c++20"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
SANITIZERS += ["-O1", "-g1"]
NVCC_FLAGS = ["-O3", "-std=c++20"]
# torch 2.10: the CUDA extension keeps to the stable ABI of that version, whichever later one compiles it.
STABLE_ABI = "0x020a000000000000"
# Compiled for where TORCH_CUDA_ARCH_LIST names nothing: the first has the instructions that the kernels use.
ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
# Commands that compile nothing, and so need neither torch nor a compiler; and those that may stand beside them.
DESCRIBING = {"sdist", "egg_info", "dist_info"}
COMPILING = {"build", "build_ext", "bdist_wheel", "editable_wheel", "install", "develop"}
# Memory that is kept free for one nvcc.
NVCC_BYTES = 2**30


class NoCuda(Exception):
    """Why there is no CUDA extension, and what would help."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


def check_setuptools(version: str) -> None:
    """End with a sentence where setuptools would end with pyproject.toml's schema."""
    if int(version.partition(".")[0]) < 77:
        raise SystemExit(
            f"memmod: setuptools {version} does not read pyproject.toml's licence: pip install 'setuptools>=77'"
        )


def setting(name: str, default: str, allowed: tuple[str, ...]) -> str:
    value = os.environ.get(name) or default
    if value not in allowed:
        sys.exit(f"memmod: {name}={value!r} is not known; use one of {', '.join(allowed)}")
    return value


def sanitizers() -> list[str]:
    """The options of a build that stops at memory errors and undefined behaviour, where MEMMOD_SANITIZE asks for it."""
    return SANITIZERS if setting("MEMMOD_SANITIZE", "0", ("0", "1")) == "1" else []


def find_compiler() -> str | None:
    """The C++ compiler: CXX, or the first one on the PATH."""
    named = os.environ.get("CXX")
    if named:
        return named if shutil.which(named.split()[0]) else None
    return next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def relative(files: Iterable[Path]) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in files)


def cpu_extension(compiler: str) -> Extension:
    from torch.utils.cpp_extension import CppExtension

    # torch and setuptools both read CXX: the same compiler compiles and links.
    os.environ["CXX"] = compiler
    # Eager calls of CUDA tensors take csrc/gpu, which needs no toolkit.
    folders = (ROOT / "csrc/cpu", ROOT / "csrc/gpu")
    return CppExtension(
        "memmod._cpu",
        sources=relative(path for folder in folders for path in folder.rglob("*.cpp")),
        depends=relative(path for folder in folders for path in folder.rglob("*.[hi]*")),
        include_dirs=[str(ROOT / "csrc/cpu"), str(ROOT / "csrc")],
        extra_compile_args={"cxx": CXX_FLAGS + sanitizers()},
        extra_link_args=sanitizers(),
    )


def find_toolkit() -> Path:
    """The CUDA toolkit's folder, which has bin/nvcc: CUDA_HOME, or that of the nvcc on the PATH."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        if not Path(home, "bin/nvcc").is_file():
            raise NoCuda(f"CUDA_HOME={home!r} has no bin/nvcc", "Set CUDA_HOME to a CUDA toolkit's folder, or unset it")
        return Path(home)
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        remedy = "Install a CUDA toolkit, or set CUDA_HOME to the folder of one (often /usr/local/cuda)"
        raise NoCuda("there was no nvcc on the PATH, and CUDA_HOME was not set", remedy)
    # It may be a script elsewhere that calls nvcc, which says where it is itself.
    said = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True, check=False)
    folders = re.findall(r"^#\$ _HERE_=(.+)$", said.stderr + said.stdout, re.MULTILINE)
    for folder in [*folders, Path(nvcc).resolve().parent]:
        root = Path(folder).resolve().parent
        if (root / "bin/nvcc").is_file():
            return root
    raise NoCuda(f"{nvcc} does not say where its toolkit is", "Set CUDA_HOME to the toolkit's folder")


def ask(nvcc: Path, option: str) -> str:
    try:
        return subprocess.run([nvcc, option], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoCuda(f"`{nvcc} {option}` failed ({error})", "Set CUDA_HOME to another CUDA toolkit's folder") from error


def toolkit_version(root: Path) -> str:
    """The toolkit's version as "13.0", of the major version that torch was built with."""
    import torch

    found = re.search(r"release (\d+\.\d+)", ask(root / "bin/nvcc", "--version"))
    version = found[1] if found else "unknown"
    major = torch.version.cuda.partition(".")[0]
    if version.partition(".")[0] != major:
        reason = f"the toolkit in {root} is CUDA {version}, and torch {torch.__version__} is built for CUDA {major}"
        raise NoCuda(reason, f"Set CUDA_HOME to the folder of a CUDA {major} toolkit")
    return version


def architectures(nvcc: Path) -> list[str]:
    """What to compile for, as ["8.0", "9.0+PTX"]: TORCH_CUDA_ARCH_LIST, or ARCHITECTURES as far as this nvcc can."""
    numbers = re.findall(r"\bsm_(\d+)(\d)\b", ask(nvcc, "--list-gpu-code"))
    known = sorted({f"{major}.{minor}" for major, minor in numbers}, key=float)
    value = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    listed = re.findall(r"[^;\s]+", value)
    if not listed:
        chosen = [name for name in ARCHITECTURES if name in known]
        if not chosen:
            remedy = "Set CUDA_HOME to another CUDA toolkit's folder"
            raise NoCuda(f"{nvcc} compiles for none of {', '.join(ARCHITECTURES)}", remedy)
        return [*chosen[:-1], f"{chosen[-1]}+PTX"]
    chosen = []
    for name in listed:
        match = re.fullmatch(r"(\d+\.\d)[af]?(\+PTX)?", name)
        if match and float(match[1]) < float(ARCHITECTURES[0]):
            say(f"leaving out {name} of TORCH_CUDA_ARCH_LIST: the CUDA kernels need {ARCHITECTURES[0]} or later")
        elif match and match[1] in known:
            chosen.append(name)
        else:
            sys.exit(
                f"memmod: {name!r} in TORCH_CUDA_ARCH_LIST={value!r} is nothing that {nvcc} compiles for; use some of "
                f"{', '.join(known)}, with +PTX for GPUs that come later, such as '8.0 9.0+PTX'"
            )
    if not chosen:
        reason = f"TORCH_CUDA_ARCH_LIST={value!r} names nothing from {ARCHITECTURES[0]} on, which the kernels need"
        raise NoCuda(reason, "Unset it, or name the architecture of your GPU")
    return list(dict.fromkeys(chosen))


def gencode(names: list[str]) -> list[str]:
    """nvcc's options for these architectures; with them torch adds none of its own, which it would ask a GPU for."""
    options = []
    for name in names:
        number = name.removesuffix("+PTX").replace(".", "")
        # Every GPU of 9.0 has the instructions of 9.0a, which linear_fused.cu uses; PTX of those runs on no other.
        code = "90a" if number == "90" else number
        options.append(f"-gencode=arch=compute_{code},code=sm_{code}")
        if name.endswith("+PTX"):
            options.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return options


def jobs(
    meminfo: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup/memory.max"), cores: int | None = None
) -> int:
    """How many files to compile at a time: MAX_JOBS at most, one per core, and no more nvcc than memory holds."""
    limits = [cores or os.cpu_count() or 1]
    if os.environ.get("MAX_JOBS", "").isdigit():
        limits.append(int(os.environ["MAX_JOBS"]))
    available = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.is_file() else None
    if available:
        limits.append(int(available[1]) * 1024 // NVCC_BYTES)
    if limit.is_file() and limit.read_text().strip().isdigit():
        limits.append(int(limit.read_text()) // NVCC_BYTES)
    return max(1, min(limits))


def cuda_extension(compiler: str) -> tuple[Extension, dict[str, Any]]:
    """The CUDA extension and its facts; NoCuda where it cannot be built. Whether there is a GPU does not matter."""
    import torch

    if torch.version.cuda is None:
        raise NoCuda(f"torch {torch.__version__} is built without CUDA", "Install a torch with CUDA first")
    root = find_toolkit()
    version = toolkit_version(root)
    chosen = architectures(root / "bin/nvcc")
    # torch reads it when its cpp_extension is imported.
    os.environ["CUDA_HOME"] = str(root)
    os.environ["MAX_JOBS"] = str(jobs())
    from torch.utils.cpp_extension import CUDAExtension

    kernels = sorted((ROOT / "csrc/cuda").glob("*.cu"))
    host = ["-ccbin", compiler] if os.environ.get("CXX") == compiler and " " not in compiler else []
    extension = CUDAExtension(
        "memmod._cuda",
        sources=relative([*kernels, ROOT / "csrc/cuda/module.cpp"]),
        depends=relative((ROOT / "csrc/cuda/include").iterdir()),
        include_dirs=[str(ROOT / "csrc/cuda/include")],
        define_macros=[("TORCH_TARGET_VERSION", STABLE_ABI), ("USE_CUDA", None)],
        extra_compile_args={
            "cxx": ["-O3", "-g0", "-std=c++20", "-Wall"],
            "nvcc": NVCC_FLAGS + gencode(chosen) + host,
        },
        py_limited_api=True,
    )
    facts = {
        "kernels": [path.stem for path in kernels],
        "architectures": chosen,
        "toolkit": version,
        "flags": NVCC_FLAGS,
    }
    return extension, facts


def say(message: str) -> None:
    print(f"memmod: {message}", file=sys.stderr)


def extensions() -> tuple[list[Extension], dict[str, Any]]:
    """What to compile, and what the build's facts say of it: `reason` if there is no extension, and `cuda`."""
    wanted = setting("MEMMOD_CUDA", "auto", ("auto", "0", "1"))
    if setting("MEMMOD_EXT", "1", ("0", "1")) == "0":
        if wanted == "1":
            sys.exit("memmod: MEMMOD_CUDA=1 asks for the CUDA extension, and MEMMOD_EXT=0 for none: unset one of them")
        return [], without("it was built with MEMMOD_EXT=0")
    try:
        import torch  # noqa: F401
    except ImportError as error:
        sys.exit(
            f"memmod: torch cannot be imported by {sys.executable} ({error}), and the compiled extension is built "
            "against it. Install torch first, then `pip install --no-build-isolation .`; MEMMOD_EXT=0 builds without it"
        )
    compiler = find_compiler()
    if compiler is None:
        named = os.environ.get("CXX") or "c++, g++ or clang++"
        if wanted == "1":
            sys.exit(
                f"memmod: MEMMOD_CUDA=1 asks for the CUDA extension, but no C++ compiler was found ({named}). "
                "Install g++ (or set CXX)"
            )
        say(
            f"WARNING: no C++ compiler found ({named}): installing pure Python, the operations will run on "
            "plain PyTorch. Install g++ (or set CXX) and install again for the compiled CPU kernels"
        )
        return [], without(f"no C++ compiler was found ({named}) when it was built")
    if wanted == "0":
        return [cpu_extension(compiler)], {"cuda": {"extension": None, "reason": "it was built with MEMMOD_CUDA=0"}}
    try:
        cuda, facts = cuda_extension(compiler)
    except NoCuda as missing:
        if wanted == "1":
            sys.exit(
                f"memmod: MEMMOD_CUDA=1 asks for the CUDA extension, but {missing}. {missing.remedy}; "
                "MEMMOD_CUDA=0 builds without it"
            )
        say(f"building without the CUDA extension, because {missing}. {missing.remedy}, and install again for it")
        return [cpu_extension(compiler)], {"cuda": {"extension": None, "reason": str(missing)}}
    return [cpu_extension(compiler), cuda], {"cuda": facts}


def without(reason: str) -> dict[str, Any]:
    return {"extension": None, "reason": reason, "cuda": {"extension": None, "reason": reason}}


def write_build_info(folder: Path, **facts: object) -> None:
    """Write the build's facts beside the package; memmod reads them before it loads the extension."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / BUILD_INFO
    partial = target.with_suffix(".tmp")
    partial.write_text(json.dumps({"python": platform.python_version(), **facts}, indent=2) + "\n")
    os.replace(partial, target)


def remove(folder: Path, *patterns: str) -> None:
    """Delete what an earlier build left in the source folder."""
    for pattern in patterns:
        for stale in folder.glob(pattern):
            stale.unlink()


def package_command(ext_modules: list[Extension], facts: dict[str, Any]) -> type[build_py]:
    class BuildPackages(build_py):
        def run(self) -> None:
            super().run()
            if ext_modules:
                return
            folder = ROOT / "memmod" if self.editable_mode else Path(self.build_lib, "memmod")
            if self.editable_mode:
                remove(folder, "_cpu*.so", "_cuda*.so")
            write_build_info(folder, **facts)

    return BuildPackages


def extension_command(facts: dict[str, Any]) -> type[build_ext]:
    import torch
    from torch.utils.cpp_extension import BuildExtension

    class BuildWithInfo(BuildExtension):
        def run(self) -> None:
            cuda = facts["cuda"]
            with_cuda = "toolkit" in cuda
            try:
                super().run()
            except Exception:
                if with_cuda:
                    say("the build failed; if CUDA was the cause, MEMMOD_CUDA=0 builds without its extension")
                raise
            if with_cuda:
                cuda = {"extension": Path(self.get_ext_filename("memmod._cuda")).name, **cuda}
            elif self.inplace:
                remove(ROOT / "memmod", "_cuda*.so")
            compiler = os.environ["CXX"]
            version = subprocess.run([*compiler.split(), "--version"], capture_output=True, text=True, check=False)
            write_build_info(
                ROOT / "memmod" if self.inplace else Path(self.build_lib, "memmod"),
                extension=Path(self.get_ext_filename("memmod._cpu")).name,
                torch=torch.__version__,
                compiler=(version.stdout.splitlines() or [compiler])[0],
                flags=CXX_FLAGS + sanitizers(),
                cuda=cuda,
            )

    return BuildWithInfo


class CleanBuild(build):
    """Starts from an empty build/lib*: a file deleted from the tree would otherwise stay in every later wheel."""

    def run(self) -> None:
        for stale in (ROOT / "build").glob("lib*"):
            shutil.rmtree(stale)
        super().run()


def main() -> None:
    check_setuptools(setuptools.__version__)
    compiles = not DESCRIBING.intersection(sys.argv) or bool(COMPILING.intersection(sys.argv))
    ext_modules, facts = extensions() if compiles else ([], {})
    commands = {"build": CleanBuild, "build_py": package_command(ext_modules, facts)}
    if ext_modules:
        commands["build_ext"] = extension_command(facts)
    setup(
        packages=[*find_packages(str(ROOT), include=["memmod", "memmod.*"]), "memmod.kernels"],
        package_dir={"memmod": "memmod", "memmod.kernels": "kernels/memmod_kernels"},
        package_data={"memmod": ["py.typed"], "memmod.report": ["templates/*"]},
        include_package_data=False,
        ext_modules=ext_modules,
        cmdclass=commands,
        zip_safe=False,
    )


if __name__ == "__main__":
    main()
