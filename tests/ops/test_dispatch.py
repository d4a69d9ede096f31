"""Choosing a backend: automatic, forced, forced where it cannot run."""

from __future__ import annotations

import pytest
import torch

import memmod
from memmod.errors import BackendError
from memmod.ops import dispatch


@pytest.fixture
def table(monkeypatch):
    """A table of its own for an op "double", with a reference that doubles."""
    dispatch.availability()
    monkeypatch.setattr(dispatch, "_kernels", {"double": {}})
    monkeypatch.setattr(dispatch, "_unavailable", dict(dispatch._unavailable))
    dispatch.register("double", "reference", lambda call: 2 * call[0])
    monkeypatch.setattr(dispatch, "_forced", None)


def no_fp64(call):
    return "no fp64" if call[0].dtype is torch.float64 else None


def test_reference_is_always_there():
    assert dispatch.availability()["reference"] is None
    assert set(dispatch.availability()) == set(dispatch.BACKENDS)
    for op in ("modulated_linear", "modulated_conv2d", "modulate_output"):
        assert dispatch.kernel(op, "reference") is not None
        assert dispatch.kernel(f"{op}_backward", "reference") is not None


def test_automatic_takes_the_first_that_supports_the_call(table):
    dispatch.register(
        "double", "cpu", lambda call: 20 * call[0], lambda call: "no fp64" if call[0].dtype is torch.float64 else None
    )
    assert dispatch.call("double", (torch.tensor(1.0),)).item() == 20
    assert dispatch.call("double", (torch.tensor(1.0, dtype=torch.float64),)).item() == 2
    assert dispatch.get_backend() is None


def test_automatic_leaves_a_call_to_the_next_backend_that_supports_it(table, monkeypatch):
    monkeypatch.setattr(dispatch, "_AUTOMATIC", {"cpu": ("cuda", "triton")})
    dispatch.register("double", "cuda", lambda call: 20 * call[0], None, lambda call: "small" if call[0] < 1 else None)
    assert dispatch.call("double", (torch.tensor(2.0),)).item() == 40
    # No other backend is there: better than the reference.
    assert dispatch.call("double", (torch.tensor(0.5),)).item() == 10
    dispatch.register("double", "triton", lambda call: 200 * call[0])
    assert dispatch.call("double", (torch.tensor(0.5),)).item() == 100
    assert dispatch.call("double", (torch.tensor(2.0),)).item() == 40


def test_forced_backend_runs_or_says_why_not(table):
    dispatch.register(
        "double", "cpu", lambda call: 20 * call[0], lambda call: "no fp64" if call[0].dtype is torch.float64 else None
    )
    memmod.set_backend("reference")
    assert memmod.get_backend() == "reference"
    assert dispatch.call("double", (torch.tensor(1.0),)).item() == 2
    memmod.set_backend("cpu")
    assert dispatch.call("double", (torch.tensor(1.0),)).item() == 20
    with pytest.raises(BackendError, match="'cpu' was forced but cannot run this call of double: no fp64"):
        dispatch.call("double", (torch.tensor(1.0, dtype=torch.float64),))
    dispatch.register("triple", "reference", lambda call: 3 * call[0])
    with pytest.raises(BackendError, match="'cpu' was forced but cannot run triple: it has no kernel for triple"):
        dispatch.call("triple", (torch.tensor(1.0),))


def test_unavailable_backend_cannot_be_forced(table):
    dispatch.set_unavailable("cuda", "this build has no CUDA kernels")
    with pytest.raises(BackendError, match="'cuda' is not available: this build has no CUDA kernels"):
        memmod.set_backend("cuda")
    with pytest.raises(BackendError, match="backend 'fast' is unknown; it must be one of 'reference', 'cpu'"):
        memmod.set_backend("fast")
    assert memmod.get_backend() is None


def test_environment_forces_a_backend(table, monkeypatch):
    monkeypatch.setenv("MEMMOD_BACKEND", "reference")
    memmod.set_backend(None)
    assert memmod.get_backend() == "reference"
    assert dispatch.call("double", (torch.tensor(1.0),)).item() == 2
    monkeypatch.setenv("MEMMOD_BACKEND", "fast")
    memmod.set_backend(None)
    with pytest.raises(BackendError, match="backend 'fast' is unknown"):
        dispatch.call("double", (torch.tensor(1.0),))
    dispatch.set_unavailable("cuda", "this build has no CUDA kernels")
    monkeypatch.setenv("MEMMOD_BACKEND", "cuda")
    memmod.set_backend(None)
    with pytest.raises(BackendError, match="'cuda' was forced but cannot run double: this build has no CUDA kernels"):
        dispatch.call("double", (torch.tensor(1.0),))
    monkeypatch.delenv("MEMMOD_BACKEND")
    memmod.set_backend(None)
    assert memmod.get_backend() is None
