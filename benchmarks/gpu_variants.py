"""The variants in which memmod computes a call on a GPU, each a rival beside its own choice among them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from memmod.ops import dispatch
from memmod.ops.backends import gpu_policy
from memmod.ops.backends.gpu_policy import Path

# Backend and path by the rival's name. Backend cuda has kernels of its own for few rows and for convolutions, and
# elsewhere the library's product with its tail.
VARIANTS: dict[str, tuple[str, Path | None]] = {
    "memmod triton": ("triton", "fused"),
    "memmod triton unfused": ("triton", "unfused"),
    "memmod cuda": ("cuda", "fused"),
    "memmod cuda unfused": ("cuda", "unfused"),
}


def why_not(variant: str) -> str | None:
    """Why a variant cannot be measured, or None."""
    forced, (backend, _) = dispatch.get_backend(), VARIANTS[variant]
    return f"backend {forced} is forced" if forced not in (None, backend) else dispatch.availability()[backend]


@contextmanager
def on_variant(rival: str) -> Iterator[None]:
    """The backend and the path are those that the rival's name names, if it names a variant."""
    if rival not in VARIANTS:
        yield
        return
    backend, path = VARIANTS[rival]
    before, path_before = dispatch.get_backend(), gpu_policy.forced()
    dispatch.set_backend(backend)
    gpu_policy.force(path)
    try:
        yield
    finally:
        gpu_policy.force(path_before)
        dispatch.set_backend(before)
