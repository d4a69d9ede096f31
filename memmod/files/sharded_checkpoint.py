"""The state of an unfinished round whose tensors are split over processes, each of which writes its parts.

A folder: a card, and in a folder of their own the files of `torch.distributed.checkpoint`, safetensors too. The card
names that folder, so that one of an interrupted save is never read. Any number of processes can read it again.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from memmod.distributed import processes
from memmod.errors import RunError
from memmod.files.atomic import write_atomically
from memmod.files.checkpoint import Checkpoint
from memmod.files.sealed import CARD_SHA256, card_sha256, check_card
from memmod.files.strict_json import Origin, as_json, check, dump, parse

FOLDER_NAME = "checkpoint-shards"
FORMAT = "memmod-sharded-checkpoint"
FORMAT_VERSION = 1
_CARD = "card.json"
_BYTES = 2**20
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.float64, torch.uint8, torch.int64)}

# What a tensor of that group, name, shape and dtype is read into.
Empty = Callable[[str, str, tuple[int, ...], torch.dtype], Tensor]


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint whose tensors may be split; every process calls this, and all see the same folder.

    A process killed meanwhile leaves the previous one.

    Raises:
        RunError: on every process, where one cannot write.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageWriter
    from torch.distributed.checkpoint import save as save_parts

    # Never the folder of the checkpoint that is there, which the card names until the end.
    name = processes.by_first(lambda: f"step-{checkpoint.progress['step']}-{secrets.token_hex(4)}")
    own = folder / name
    processes.by_first(lambda: own.mkdir(parents=True))
    processes.agreed(lambda: _check_seen(own))
    flat = {f"{group}/{key}": t.detach() for group, tensors in checkpoint.tensors.items() for key, t in tensors.items()}
    writer = HuggingFaceStorageWriter(str(own), save_distributed=True)
    processes.agreed(lambda: _quietly(lambda: save_parts(flat, storage_writer=writer, no_dist=not _grouped())))
    card = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "folder": name,
        "run": checkpoint.run,
        "progress": checkpoint.progress,
        "tensors": {key: [str(tensor.dtype), list(tensor.shape)] for key, tensor in flat.items()},
    }
    processes.by_first(lambda: _finish(folder, own, card))


def load(folder: Path, empty: Empty) -> Checkpoint:
    """Read a checkpoint into the tensors that `empty` makes, whole or split; every process calls this.

    Raises:
        RunError: on every process: it is missing, damaged, changed, or of another format version.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint import load as load_parts

    origin = Origin(f"the checkpoint {folder}", RunError, "delete it and start anew")
    card = processes.by_first(lambda: _checked_card(folder, origin))
    flat: dict[str, Tensor] = {}
    tensors: dict[str, dict[str, Tensor]] = {}
    for key, (dtype, shape) in card["tensors"].items():
        group, _, name = key.partition("/")
        if dtype not in _DTYPES:
            origin.refuse(f"is damaged: {key} is of type {dtype}")
        flat[key] = tensors.setdefault(group, {})[name] = empty(group, name, tuple(shape), _DTYPES[dtype])
    reader = HuggingFaceStorageReader(str(folder / card["folder"]))

    def read() -> None:
        try:
            _quietly(lambda: load_parts(flat, storage_reader=reader, no_dist=not _grouped()))
        # What the library raises for files that are not those it wrote is of many kinds, on some processes.
        except Exception as error:
            origin.refuse(f"is damaged: it cannot be read ({error})", error)

    processes.agreed(read)
    return Checkpoint(card["run"], card["progress"], tensors)


def remove(folder: Path) -> None:
    """Delete a checkpoint, where there is one."""
    # The card first: without it nothing else in there is read.
    card_of(folder).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def card_of(folder: Path) -> Path:
    """The file that is there as soon as a whole checkpoint is."""
    return folder / _CARD


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def _quietly(action: Callable[[], Any]) -> None:
    with warnings.catch_warnings():
        # That without a group one process saves or loads, which is meant.
        warnings.simplefilter("ignore", UserWarning)
        action()


def _check_seen(own: Path) -> None:
    if not own.is_dir():
        raise RunError(
            f"{own.parent} is not the same folder for every process: split memories are saved in parts, so the run "
            "folder must lie on a file system that all machines share"
        )


def _finish(folder: Path, own: Path, card: dict[str, Any]) -> None:
    card["files"] = {path.name: _hash(path) for path in sorted(own.iterdir())}
    plain = as_json(card, Origin(f"the checkpoint {folder}", RunError, "it was not written"))
    write_atomically(folder / _CARD, dump({**plain, CARD_SHA256: card_sha256(plain)}))
    for entry in folder.iterdir():
        if entry.is_dir() and entry != own:
            shutil.rmtree(entry, ignore_errors=True)


def _checked_card(folder: Path, origin: Origin) -> dict[str, Any]:
    try:
        card = parse(card_of(folder).read_bytes(), origin)
    except OSError as error:
        raise RunError(f"there is no checkpoint at {folder} ({error})") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise RunError(f"{folder} is not a checkpoint of memmod: delete it and start anew")
    if card.get("version") != FORMAT_VERSION:
        raise RunError(
            f"the checkpoint {folder} has format version {card.get('version')}, this memmod reads {FORMAT_VERSION}: go "
            "on with the memmod that wrote it, or start anew"
        )
    from memmod.files.schemas import ShardedCheckpointCard

    check(card, ShardedCheckpointCard, origin)
    check_card(card, origin)
    own = folder / card["folder"]
    there = {path.name: path for path in own.iterdir()} if own.is_dir() else {}
    for name, expected in card["files"].items():
        if name not in there or _hash(there[name]) != expected:
            origin.refuse(f"is damaged: {card['folder']}/{name} is missing or was changed")
    extra = sorted(there.keys() - card["files"].keys())
    if extra:
        origin.refuse(f"is damaged: {card['folder']}/{extra[0]} does not belong to it")
    return card


def _hash(path: os.PathLike) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(_BYTES):
            digest.update(part)
    return digest.hexdigest()
