"""The CUDA C++ kernels as a backend: loads the extension at the first op call, or records why it cannot be used."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from memmod.ops import dispatch
from memmod.ops.backends.build_info import PACKAGE, REBUILD, build_info
from memmod.ops.backends.cuda import policy as cuda_paths
from memmod.ops.backends.cuda.primitives import CUDA, LINE_CHUNK
from memmod.ops.backends.gpu.ops import OPS
from memmod.ops.backends.limits import gpu_supports, unserved

_KERNEL = "the CUDA kernel"
# What the tail's second dim of blocks, 65,535 at most, reaches: 32 channels each, or a chunk of a line.
BLOCKS = 2**16 - 1
CHANNELS, LINE = 32 * BLOCKS, LINE_CHUNK * BLOCKS


def unusable(package: Path = PACKAGE) -> str | None:
    """Why the extension in `package` cannot be used here, or None if it can."""
    facts = (build_info(package) or {}).get("cuda") or {"reason": "memmod was not built"}
    name = facts.get("extension")
    if name is None:
        return f"memmod in {package} has no CUDA extension, because {facts['reason']}; {REBUILD}"
    if not (package / name).is_file():
        return f"the CUDA extension {package / name} is missing; {REBUILD}"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    if torch.cuda.device_count() == 0:
        return "no NVIDIA GPU is visible"
    return None


@functools.cache
def _no_code(device: torch.device) -> str | None:
    """Why a GPU cannot run what was compiled; asked at its first tensor, as asking opens it."""
    capability = torch.cuda.get_device_capability(device)
    architectures = build_info()["cuda"]["architectures"]
    if compiled_for(capability, architectures):
        return None
    name = ".".join(map(str, capability))
    return (
        f"{device} has compute capability {name}, and the CUDA extension is compiled for {' '.join(architectures)}: "
        f"build it with TORCH_CUDA_ARCH_LIST={name}"
    )


def compiled_for(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Whether a GPU runs code for one of these, such as ["8.0", "9.0+PTX"]: of its own major version, or later PTX."""
    for name in architectures:
        major, minor = map(int, name.removesuffix("+PTX").rstrip("af").split("."))
        specific = name.removesuffix("+PTX")[-1] in "af"
        if specific and (major, minor) == capability:
            return True
        if not specific and (major, minor) <= capability and (name.endswith("+PTX") or major == capability[0]):
            return True
    return False


def register() -> None:
    """Load the extension and register its kernels; `dispatch.availability()` tells why, if it cannot be loaded."""
    reason = unusable()
    if reason is None:
        reason = load(PACKAGE / build_info()["cuda"]["extension"], "cuda")
    if reason is not None:
        dispatch.set_unavailable("cuda", reason)


def load(library: Path, device: str) -> str | None:
    """Load the kernels for tensors of that type of device, and register them; what went wrong, or None."""
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return f"{library} cannot be loaded: {error}; {REBUILD}"
    cuda_paths.device_type = device
    for op, supports in gpu_supports(_KERNEL, _unserved).items():
        dispatch.register(op, "cuda", functools.partial(OPS[op], CUDA), supports, cuda_paths.passes_over(op))
    return None


def device_type() -> str:
    """The type of the device whose tensors the kernels take: "cuda", or "cpu" where tests run them there."""
    return cuda_paths.device_type


def _unserved(x: Tensor, *memories: Tensor | None) -> str | None:
    if x.device.type != device_type():
        return f"{_KERNEL} needs a {device_type().upper()} tensor, x is on {x.device}"
    return (_no_code(x.device) if x.is_cuda else None) or unserved(_KERNEL, x, *memories) or _too_long(x, *memories)


def _too_long(x: Tensor, *memories: Tensor | None) -> str | None:
    """More channels, or a longer line of numbers behind two dims, than the tail's blocks reach."""
    widest = max((memory.shape[-1] for memory in memories if memory is not None), default=0)
    if widest > CHANNELS:
        return f"{_KERNEL} gates up to {CHANNELS} channels, not {widest}"
    line = x[:1, :1].numel() if x.dim() > 2 else 0
    return None if line <= LINE else f"{_KERNEL} takes up to {LINE} numbers behind the first two dims, not {line}"
