"""Several processes of one program, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def launch(count: int, *command: str, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    """torchrun on this machine: `count` processes of ``python -m command...``, gloo, one thread each."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"]
    return subprocess.run(
        [*torchrun, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )
