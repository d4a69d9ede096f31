"""`pytest -p tests.cuda.plugin`: the ops run the CUDA kernels, on CPU tensors, under the host shim.

MEMMOD_CUDA_HOST names the build: plain (the default), asan or tsan. The summary says how many kernels were launched.
"""

from __future__ import annotations

import ctypes
import os

import pytest
import torch

from memmod.ops import dispatch
from memmod.ops.backends import gpu_policy
from memmod.ops.backends.cuda import register as cuda_kernels
from tests.cuda.build import compile_extension, sources

SHIM = pytest.StashKey[ctypes.CDLL]()
_others = 0


def load(kind: str, files: dict[str, str]) -> ctypes.CDLL:
    """Compile and load the kernels, and force them; the shim's own functions."""
    library = compile_extension(kind, files)
    dispatch.load()
    reason = cuda_kernels.load(library, "cpu")
    assert reason is None, reason
    # Also what `set_backend(None)` returns to.
    os.environ["MEMMOD_BACKEND"] = "cuda"
    dispatch.set_backend(None)
    # Their own product too, which a GPU takes where it is the fastest.
    gpu_policy.force("fused")
    # The plain convolutions that errors are compared with are the CPU's, in fp32.
    torch.backends.cudnn.allow_tf32 = False
    shim = ctypes.CDLL(str(library))
    shim.memmod_host_launches.restype = ctypes.c_uint64
    return shim


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.stash[SHIM] = load(os.environ.get("MEMMOD_CUDA_HOST", "plain"), sources())


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["launches"] = session.config.stash[SHIM].memmod_host_launches()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:
    global _others
    _others += getattr(node, "workeroutput", {}).get("launches", 0)


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    shim = config.stash.get(SHIM, None)
    launches = _others if shim is None else shim.memmod_host_launches()
    kind = os.environ.get("MEMMOD_CUDA_HOST", "plain")
    terminalreporter.write_line(f"CUDA kernel launches executed on the CPU ({kind} build): {launches}")
