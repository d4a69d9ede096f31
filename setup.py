"""Builds memmod: the Python packages, and the compiled CPU extension where torch and a C++ compiler are found.

Environment: MEMMOD_EXT=0 builds pure Python; MEMMOD_CUDA=auto|0|1; MEMMOD_SANITIZE=1 builds for `make sanitize`;
MAX_JOBS; CXX.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
BUILD_INFO = "_build_info.json"
# No contraction: a·b + c would round in vectors and in the elements behind them differently. The -fno- options change
# no result, and let loops with fp16 conversions become vectors. torch brings the OpenMP library, so it is not linked.
CXX_FLAGS = ["-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-Wall"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
SANITIZERS += ["-O1", "-g1"]


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


def cpu_extensions(compiler: str) -> list[Extension]:
    from torch.utils.cpp_extension import CppExtension

    # torch and setuptools both read CXX: the same compiler compiles and links.
    os.environ["CXX"] = compiler
    return [
        CppExtension(
            "memmod._cpu",
            sources=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc/cpu").glob("*.cpp")),
            depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.[hi]*")),
            include_dirs=[str(ROOT / "csrc/include")],
            extra_compile_args={"cxx": CXX_FLAGS + sanitizers()},
            extra_link_args=sanitizers(),
        )
    ]


def cuda_extensions() -> list[Extension]:
    """The CUDA extension, where MEMMOD_CUDA asks for it and a toolkit is found."""
    if setting("MEMMOD_CUDA", "auto", ("auto", "0", "1")) == "1":
        sys.exit(
            "memmod: MEMMOD_CUDA=1 asks for the CUDA extension, but this version has no CUDA sources: "
            "unset MEMMOD_CUDA, models on a GPU run through the plain PyTorch implementation"
        )
    return []


def extensions() -> tuple[list[Extension], str | None]:
    """What to compile, and if it is nothing, why."""
    if setting("MEMMOD_EXT", "1", ("0", "1")) == "0":
        return [], "it was built with MEMMOD_EXT=0"
    try:
        import torch  # noqa: F401
    except ImportError as error:
        sys.exit(
            f"memmod: torch cannot be imported by {sys.executable} ({error}), and the compiled extension is built "
            "against it. Install torch first, then `pip install --no-build-isolation .`; MEMMOD_EXT=0 builds without it"
        )
    cuda = cuda_extensions()
    compiler = find_compiler()
    if compiler is None:
        wanted = os.environ.get("CXX") or "c++, g++ or clang++"
        print(
            f"memmod: WARNING: no C++ compiler found ({wanted}): installing pure Python, the operations will run on "
            "plain PyTorch. Install g++ (or set CXX) and install again for the compiled CPU kernels",
            file=sys.stderr,
        )
        return [], f"no C++ compiler was found ({wanted}) when it was built"
    return cpu_extensions(compiler) + cuda, None


def write_build_info(folder: Path, **facts: object) -> None:
    """Write the build's facts beside the package; memmod reads them before it loads the extension."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / BUILD_INFO
    partial = target.with_suffix(".tmp")
    partial.write_text(json.dumps({"python": platform.python_version(), **facts}, indent=2) + "\n")
    os.replace(partial, target)


def package_command(ext_modules: list[Extension], reason: str | None) -> type[build_py]:
    class BuildPackages(build_py):
        def run(self) -> None:
            super().run()
            if ext_modules:
                return
            folder = ROOT / "memmod" if self.editable_mode else Path(self.build_lib, "memmod")
            if self.editable_mode:
                for stale in folder.glob("_cpu*.so"):
                    stale.unlink()
            write_build_info(folder, extension=None, reason=reason)

    return BuildPackages


def extension_command() -> type[build_ext]:
    import torch
    from torch.utils.cpp_extension import BuildExtension

    class BuildWithInfo(BuildExtension):
        def run(self) -> None:
            super().run()
            compiler = os.environ["CXX"]
            version = subprocess.run([*compiler.split(), "--version"], capture_output=True, text=True, check=False)
            write_build_info(
                ROOT / "memmod" if self.inplace else Path(self.build_lib, "memmod"),
                extension=Path(self.get_ext_filename("memmod._cpu")).name,
                torch=torch.__version__,
                compiler=(version.stdout.splitlines() or [compiler])[0],
                flags=CXX_FLAGS + sanitizers(),
            )

    return BuildWithInfo


class CleanBuild(build):
    """Starts from an empty build/lib*: a file deleted from the tree would otherwise stay in every later wheel."""

    def run(self) -> None:
        for stale in (ROOT / "build").glob("lib*"):
            shutil.rmtree(stale)
        super().run()


ext_modules, no_extension = extensions()
commands = {"build": CleanBuild, "build_py": package_command(ext_modules, no_extension)}
if ext_modules:
    commands["build_ext"] = extension_command()

setup(
    packages=[*find_packages(str(ROOT), include=["memmod", "memmod.*"]), "memmod.kernels"],
    package_dir={"memmod": "memmod", "memmod.kernels": "kernels/memmod_kernels"},
    package_data={"memmod": ["py.typed"], "memmod.report": ["templates/*"]},
    include_package_data=False,
    ext_modules=ext_modules,
    cmdclass=commands,
    zip_safe=False,
)
