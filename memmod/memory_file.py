"""The memory file: a model's memories and the card that says which model they belong to."""

from __future__ import annotations

import json
import logging
import os
from typing import Any

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from memmod.distributed.sharded import local
from memmod.errors import MemoryFileError
from memmod.files.atomic import write_atomically
from memmod.files.sealed import TENSORS_SHA256, check_card, check_tensors, read_tensors, seal
from memmod.files.strict_json import Origin, as_json, check, parse

FORMAT = "memmod-memory"
FORMAT_VERSION = 2
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

logger = logging.getLogger(__name__)

_AGAIN = "take an undamaged copy, or save it again with save_memory()"


def write_memory_file(path: str | os.PathLike[str], memories: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Write memories (name → ``[C, K]``) and their card as safetensors.

    Raises:
        MemoryFileError: the card does not fit JSON, or lacks what it must hold.
    """
    origin = Origin(f"the card for {path}", MemoryFileError, "nothing was written; mend the card and save again")
    from memmod.files.schemas import MemoryCard

    plain = as_json(card, origin)
    tensors = {name: memory.detach().cpu().contiguous() for name, memory in memories.items()}
    sealed = seal({**plain, "format": FORMAT, "version": FORMAT_VERSION}, tensors)
    check(sealed, MemoryCard, origin)
    write_atomically(path, serialise(tensors, metadata={"card": json.dumps(sealed)}))


def read_card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The card of a memory file: format, version, num_classes, class_names, base_sha256, config, and its maker's own.

    Raises:
        MemoryFileError: missing, cut short, changed, not safetensors, not a memory file, or of a newer format.
    """
    return _read(path, with_tensors=False)[0]


def read_memory_file(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The card and the memories (name → fp32 ``[C, K]``) of a memory file.

    Raises:
        MemoryFileError: as `read_card`; or the memories were changed, or are not those that the card names.
    """
    card, memories = _read(path, with_tensors=True)
    check_tensors(card, memories, Origin(f"the memory file {path}", MemoryFileError, _AGAIN))
    if TENSORS_SHA256 not in card:
        logger.warning(
            f"{path} has format version {card['version']}, without a hash of its memories: damage cannot be noticed; "
            "save it again with save_memory()"
        )
    _check_places(path, card, memories)
    return card, memories


def _read(path: str | os.PathLike[str], with_tensors: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not os.path.isfile(path):
        raise MemoryFileError(f"there is no memory file at {path}")
    metadata, tensors = read_tensors(path, Origin(f"the memory file {path}", MemoryFileError, _AGAIN), with_tensors)
    origin = Origin(f"the card of {path}", MemoryFileError, _AGAIN)
    card = parse(metadata.get("card", "null"), origin)
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise MemoryFileError(f"{path} is a safetensors file without a memmod card: it was not made by save_memory()")
    from memmod.files.schemas import MemoryCard

    version = card.get("version")
    if type(version) is int and version > FORMAT_VERSION:
        raise MemoryFileError(
            f"{path} has format version {version}, this memmod reads up to {FORMAT_VERSION}: upgrade memmod"
        )
    check(card, MemoryCard, origin)
    check_card(card, origin)
    return card, tensors


def _check_places(path: str | os.PathLike[str], card: dict[str, Any], memories: dict[str, Tensor]) -> None:
    """Compare the names and rows of the memories with the card's layers and classes, before a model is made of them."""
    layers = set(card["layers"])
    found = {name: name.rpartition(".")[0] for name in memories}
    missing = sorted(layers - set(found.values()))
    unknown = sorted(name for name, layer in found.items() if layer not in layers)
    if missing or unknown:
        raise MemoryFileError(f"{path} does not fit the layers in its card: {_difference(missing, unknown)}: {_AGAIN}")
    for name, memory in memories.items():
        if memory.dim() < 2 or memory.shape[0] != card["num_classes"]:
            raise MemoryFileError(
                f"{path}: the memory {name} has shape {tuple(memory.shape)}, but its card says "
                f"{card['num_classes']} classes, a row each: {_AGAIN}"
            )


def check_memories(path: str | os.PathLike[str], stored: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Compare the memories in a file with those of a model, by name and shape.

    Raises:
        MemoryFileError: missing or unknown layers, or other shapes; each is named.
    """
    missing, unknown = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
    if missing or unknown:
        raise MemoryFileError(f"{path} does not fit this model's memories: {_difference(missing, unknown)}")
    for name, memory in expected.items():
        found = stored[name]
        if found.shape != memory.shape:
            raise MemoryFileError(
                f"{path}: the memory {name} has shape {tuple(found.shape)}, this model needs {tuple(memory.shape)}"
            )
        if found.dtype not in DTYPES or not torch.isfinite(local(found).to(memory.dtype)).all():
            raise MemoryFileError(
                f"{path}: the memory {name} ({found.dtype}) holds values that are not finite {memory.dtype} numbers"
            )


def _difference(missing: list[str], unknown: list[str]) -> str:
    parts = [f"missing {', '.join(missing)}"] * bool(missing) + [f"unknown {', '.join(unknown)}"] * bool(unknown)
    return "; ".join(parts)
