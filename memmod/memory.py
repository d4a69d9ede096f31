"""The memory file: a model's memories and the card that says which model they belong to."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor, nn

from memmod.errors import MemoryFileError

FORMAT = "memmod-memory"
FORMAT_VERSION = 1


def state_sha256(model: nn.Module) -> str:
    """SHA-256 of a model's state dict: names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return digest.hexdigest()


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Write a file so that `path` holds either all of `content` or what it held before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; a result is as readable as any other new file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_memory_file(path: str | os.PathLike, memories: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Write memories (name → ``[C, K]``) and their card as safetensors.

    Raises:
        MemoryFileError: the card does not fit JSON.
    """
    try:
        text = json.dumps({"format": FORMAT, "version": FORMAT_VERSION, **card})
    except (TypeError, ValueError) as error:
        raise MemoryFileError(f"the memory file's card must be JSON: {error}") from error
    tensors = {name: memory.detach().cpu().contiguous() for name, memory in memories.items()}
    write_atomically(path, serialise(tensors, metadata={"card": text}))


def read_card(path: str | os.PathLike) -> dict[str, Any]:
    """The card of a memory file: format, version, num_classes, class_names, base_sha256, config, and its maker's own.

    Raises:
        MemoryFileError: missing, cut short, not safetensors, not a memory file, or of a newer format.
    """
    return _read(path, with_tensors=False)[0]


def read_memory_file(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The card and the memories (name → fp32 ``[C, K]``) of a memory file.

    Raises:
        MemoryFileError: as `read_card`.
    """
    return _read(path, with_tensors=True)


def _read(path: str | os.PathLike, with_tensors: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not Path(path).is_file():
        raise MemoryFileError(f"there is no memory file at {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}
    except (SafetensorError, OSError) as error:
        raise MemoryFileError(
            f"{path} is not a memory file, or it is cut short ({error}): save it again with save_memory()"
        ) from error
    try:
        card = json.loads(metadata.get("card", "null"))
    except json.JSONDecodeError as error:
        raise MemoryFileError(f"the card of {path} is damaged ({error}): save it again with save_memory()") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise MemoryFileError(f"{path} is a safetensors file without a memmod card: it was not made by save_memory()")
    if card.get("version", 0) > FORMAT_VERSION:
        raise MemoryFileError(
            f"{path} has format version {card['version']}, this memmod reads up to {FORMAT_VERSION}: upgrade memmod"
        )
    return card, tensors


def check_memories(path: str | os.PathLike, stored: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Compare the memories in a file with those of a model, by name and shape.

    Raises:
        MemoryFileError: missing or unknown layers, or other shapes; each is named.
    """
    missing, unknown = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
    if missing or unknown:
        parts = [f"missing {', '.join(missing)}"] * bool(missing) + [f"unknown {', '.join(unknown)}"] * bool(unknown)
        raise MemoryFileError(f"{path} does not fit this model's memories: {'; '.join(parts)}")
    for name, memory in expected.items():
        if stored[name].shape != memory.shape:
            raise MemoryFileError(
                f"{path}: the memory {name} has shape {tuple(stored[name].shape)}, "
                f"this model needs {tuple(memory.shape)}"
            )
        if not stored[name].is_floating_point() or not torch.isfinite(stored[name]).all():
            raise MemoryFileError(f"{path}: the memory {name} ({stored[name].dtype}) holds values that are not finite")
