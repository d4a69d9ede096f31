"""Tensors with a card, in safetensors files, sealed: the card holds a hash of the tensors and one of itself."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from memmod.files.strict_json import Origin, canonical

TENSORS_SHA256 = "tensors_sha256"
CARD_SHA256 = "card_sha256"


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return digest.hexdigest()


def card_sha256(card: Mapping[str, Any]) -> str:
    """SHA-256 of a card (JSON values) without its own hash. Raises ValueError for text that is not UTF-8."""
    return hashlib.sha256(canonical({key: value for key, value in card.items() if key != CARD_SHA256})).hexdigest()


def seal(card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """A card (JSON values) with the hash of its tensors, and the hash of everything else that it holds."""
    sealed = {key: value for key, value in card.items() if key != CARD_SHA256}
    sealed[TENSORS_SHA256] = tensors_sha256(tensors)
    return {**sealed, CARD_SHA256: card_sha256(sealed)}


def check_card(card: Mapping[str, Any], origin: Origin) -> None:
    """Compare a card with its own hash, where it has one.

    Raises:
        MemmodError: `origin.error`: it was changed.
    """
    if CARD_SHA256 in card and card[CARD_SHA256] != card_sha256(card):
        origin.refuse(f"is damaged: its {CARD_SHA256} does not fit, so something in it was changed")


def check_tensors(card: Mapping[str, Any], tensors: Mapping[str, Tensor], origin: Origin) -> None:
    """Compare tensors with the hash in their card, where it has one.

    Raises:
        MemmodError: `origin.error`: they were changed.
    """
    if TENSORS_SHA256 in card and card[TENSORS_SHA256] != tensors_sha256(tensors):
        origin.refuse(f"is damaged: its tensors do not fit the {TENSORS_SHA256} in the card, so they were changed")


def read_tensors(
    path: str | os.PathLike[str], origin: Origin, with_tensors: bool = True
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of a safetensors file.

    Raises:
        MemmodError: `origin.error`: cut short, or not safetensors.
    """
    try:
        with safe_open(str(Path(path)), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}
            return file.metadata() or {}, tensors
    # torch refuses some shapes and types that a header can name.
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        origin.refuse(f"is damaged or cut short, or no safetensors file ({error})", error)
