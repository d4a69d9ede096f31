"""Which backend runs an op: forced by the user, or the first one that supports the call."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memmod.errors import BackendError
from memmod.ops.modes import ordinary

BACKENDS = ("reference", "cpu", "triton", "cuda")
"""What `set_backend` and MEMMOD_BACKEND take."""

# Tried in this order for tensors of that device, before the reference.
_AUTOMATIC = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}
# Modules whose `register()` fills the table, imported at the first op call.
_PROVIDERS = {
    "cpu": "memmod.ops.backends.cpu.register",
    "triton": "memmod.ops.backends.triton.register",
    "cuda": "memmod.ops.backends.cuda.register",
}

Supports = Callable[..., "str | None"]


class Kernel(NamedTuple):
    """A backend's callables for one op, each of them called with a call of `memmod.ops.calls`."""

    run: Callable[..., Any]
    supports: Supports | None
    passes_over: Supports | None = None


_kernels: dict[str, dict[str, Kernel]] = {}
# By op and type of device, the function that serves ordinary calls by itself, with its own autograd and checks.
_eager: dict[tuple[str, str], tuple[str, Callable[..., Any]]] = {}
_unavailable: dict[str, str] = {
    "cpu": "the compiled CPU extension is not loaded",
    "triton": "no Triton kernels are registered",
    "cuda": "no CUDA kernels are registered",
}
_loaded = False
_load_lock = threading.RLock()


def _environment() -> str | None:
    return os.environ.get("MEMMOD_BACKEND") or None


_forced = _environment()


def register(
    op: str,
    backend: str,
    run: Callable[..., Any],
    supports: Supports | None = None,
    passes_over: Supports | None = None,
) -> None:
    """Register `run` as `backend`'s implementation of `op`, and mark the backend available.

    Args:
        op: the op's name without namespace, such as "modulate_output" or "modulate_output_backward".
        backend: one of `BACKENDS`.
        run: takes the call (`memmod.ops.calls`) and returns what the op's schema returns.
        supports: takes the call and returns None, or the reason why this call cannot run here. It may look at shapes,
            dtypes, layouts and options, never at the values of `index`.
        passes_over: alike, why the automatic choice should leave this call to the next backend that supports it.
    """
    _check_name(backend)
    _kernels.setdefault(op, {})[backend] = Kernel(run, supports, passes_over)
    _unavailable.pop(backend, None)


def register_eager(op: str, device: str, backend: str, run: Callable[..., Any]) -> None:
    """Register what `eager` asks before `op` for tensors of a type of device: None where it does not serve a call."""
    _eager[op, device] = (backend, run)


def eager(op: str, tensors: tuple[Tensor | None, ...], *options: Any) -> Tensor | None:
    """What a backend's own autograd function returns, a tenth of the op's cost per call where layers are small.

    None where there is none, or where a call is out of the ordinary (traced, transformed, a subclass, another device or
    dtype, a wrong shape or class, another backend forced); the op then serves it, or says what is wrong with it.
    """
    if not ordinary(tensors):
        return None
    load()
    backend, run = _eager.get((op, tensors[0].device.type), (None, None))
    if run is None or _forced not in (None, backend):
        return None
    return run(*tensors, *options)


def set_unavailable(backend: str, reason: str) -> None:
    """Say why `backend` has no kernels here; `availability()` and the errors of a forced backend repeat it."""
    _check_name(backend)
    _unavailable[backend] = reason


def set_backend(name: str | None) -> None:
    """Force one backend for every op of this process; None returns to MEMMOD_BACKEND, or else to the automatic choice.

    Raises:
        BackendError: an unknown name, or a backend that is not available here.
    """
    global _forced
    if name is not None:
        _check_name(name)
        reason = availability()[name]
        if reason is not None:
            raise BackendError(
                f"backend {name!r} is not available: {reason}. Use set_backend(None) for the automatic one"
            )
    _forced = name if name is not None else _environment()


def get_backend() -> str | None:
    """The forced backend's name, or None if each call chooses its own."""
    return _forced


def availability() -> dict[str, str | None]:
    """For every backend None if it has kernels here, else the reason why not."""
    load()
    return {name: _unavailable.get(name) for name in BACKENDS}


def kernel(op: str, backend: str) -> Kernel | None:
    """The kernel that `backend` registered for `op`, or None."""
    load()
    return _kernels.get(op, {}).get(backend)


def call(op: str, call: tuple[Any, ...]) -> Any:
    """Run `op` on a call of `memmod.ops.calls` with the forced backend, or with the first that supports the call.

    Raises:
        BackendError: a backend was forced and cannot run this call.
    """
    load()
    run = _automatic_run(op, call) if _forced is None else _forced_run(op, call)
    # The op's inputs have their final dtypes: an enabled autocast region must not cast inside.
    if torch._C._is_any_autocast_enabled():
        with torch._C._DisableAutocast():
            return run(call)
    return run(call)


def _automatic_run(op: str, call: tuple[Any, ...]) -> Callable[..., Any]:
    table = _kernels[op]
    second = None
    for backend in _AUTOMATIC.get(call[0].device.type, ()):
        candidate = table.get(backend)
        if candidate is None or (candidate.supports is not None and candidate.supports(call) is not None):
            continue
        if candidate.passes_over is None or candidate.passes_over(call) is None:
            return candidate.run
        second = second or candidate
    return (second or table["reference"]).run


def _forced_run(op: str, call: tuple[Any, ...]) -> Callable[..., Any]:
    _check_name(_forced)
    hint = "Use memmod.set_backend(None) (or unset MEMMOD_BACKEND) for the automatic choice"
    candidate = _kernels[op].get(_forced)
    if candidate is None:
        reason = _unavailable.get(_forced) or f"it has no kernel for {op}"
        raise BackendError(f"backend {_forced!r} was forced but cannot run {op}: {reason}. {hint}")
    reason = candidate.supports(call) if candidate.supports is not None else None
    if reason is not None:
        raise BackendError(f"backend {_forced!r} was forced but cannot run this call of {op}: {reason}. {hint}")
    return candidate.run


def load() -> None:
    """Have every backend register its kernels, the first time."""
    global _loaded
    if _loaded:
        return
    with _load_lock:
        if _loaded:
            return
        for backend, module in _PROVIDERS.items():
            try:
                provider = importlib.import_module(module)
            except ImportError as error:
                set_unavailable(backend, str(error))
            else:
                provider.register()
        importlib.import_module("memmod.ops.eager").register(_unavailable.keys())
        _loaded = True


def _check_name(name: str | None) -> None:
    if name not in BACKENDS:
        raise BackendError(f"backend {name!r} is unknown; it must be one of {', '.join(map(repr, BACKENDS))}")
