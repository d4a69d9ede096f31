"""Fixtures of the op tests: each backend that has a kernel for the op, and memory that starts as NaN."""

from __future__ import annotations

import os
import time

import pytest
import torch

from memmod.errors import BackendError
from memmod.ops import dispatch
from memmod.ops.backends.cpu import extension

# cuBLAS repeats its bits only so, and torch refuses it otherwise where deterministic algorithms are asked for.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """Skips a test where its backend says that it does not serve the call; the reference has to serve all."""
    try:
        return (yield)
    except BackendError as error:
        if pyfuncitem.funcargs.get("backend", "reference") == "reference":
            raise
        pytest.skip(str(error))


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish(nodeid, location):
    """After a kernel that broke the CUDA context every later test of the process would fail: xdist starts another."""
    if "PYTEST_XDIST_WORKER" in os.environ and torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            # Long enough for the report to be sent.
            time.sleep(0.5)
            os._exit(1)


@pytest.fixture(autouse=True)
def library(monkeypatch):
    """On a GPU the library's convolutions repeat their bits, and fp32 is multiplied in fp32: in TF32, the library's
    choice for them, plain PyTorch's error, by which ours is bounded, follows from the kernel that cuDNN takes."""
    if torch.cuda.is_available():
        for setting in (torch.backends.cuda.matmul, torch.backends.cudnn.conv):
            monkeypatch.setattr(setting, "fp32_precision", "ieee")
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


@pytest.fixture
def backend(request):
    """Forces the backend named by the parameter for the test; of "cpu-avx2" the kernels of that instruction set."""
    name, _, isa = request.param.partition("-")
    dispatch.set_backend(name)
    if isa:
        before = extension.isa()
        extension.module().set_isa(isa)
    yield name
    if isa:
        extension.module().set_isa(before)
    dispatch.set_backend(None)


@pytest.fixture
def poisoned():
    """New tensors are filled with NaN: an element that an op forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads():
    """torch.set_num_threads, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
