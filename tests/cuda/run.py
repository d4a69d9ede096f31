"""`python -m tests.cuda.run plain|asan|tsan PYTEST-ARGUMENTS`: pytest with the CUDA kernels of that build."""

from __future__ import annotations

import os
import sys

from tests.cuda.build import KINDS, preload


def main(kind: str, *arguments: str) -> None:
    if kind not in KINDS:
        sys.exit(f"there is no build {kind!r}: use one of {', '.join(KINDS)}")
    # A report ends the process: later ones could be its consequences.
    os.environ |= {"MEMMOD_CUDA_HOST": kind, "ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
    os.environ |= {"LD_PRELOAD": preload(kind)}
    pytest = ["-m", "pytest", "--capture=sys", "-p", "tests.cuda.plugin", *arguments]
    os.execv(sys.executable, [sys.executable, *pytest])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
