"""The state of an unfinished round: safetensors with a JSON card, never a pickle, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from memmod.distributed.sharded import parted_like
from memmod.errors import RunError
from memmod.files.atomic import write_atomically
from memmod.files.sealed import check_card, check_tensors, read_tensors, seal
from memmod.files.strict_json import Origin, as_json, check, parse

FILE_NAME = "checkpoint.safetensors"
FORMAT = "memmod-checkpoint"
FORMAT_VERSION = 2

T = TypeVar("T")


@dataclass
class Checkpoint:
    """Everything a round needs to go on bit-identically.

    Args:
        run: what the round was started with (JSON values); a round with another `run` cannot go on from here.
        progress: step, history and the like (JSON values).
        tensors: groups of named tensors: memories, best memories, optimiser moments, generator states.
    """

    run: dict[str, Any]
    progress: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the checkpoint; a process killed meanwhile leaves the previous one."""
        card = {"format": FORMAT, "version": FORMAT_VERSION, "run": self.run, "progress": self.progress}
        plain = as_json(card, Origin(f"the checkpoint {path}", RunError, "it was not written"))
        flat = {
            f"{group}/{name}": tensor.detach().cpu().contiguous()
            for group, tensors in self.tensors.items()
            for name, tensor in tensors.items()
        }
        write_atomically(path, serialise(flat, metadata={"card": json.dumps(seal(plain, flat))}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            RunError: it is missing, cut short, changed, no checkpoint, or of another format version.
        """
        if not os.path.isfile(path):
            raise RunError(f"there is no checkpoint at {path}")
        origin = Origin(f"the checkpoint {path}", RunError, "delete it and start anew")
        metadata, flat = read_tensors(path, origin)
        card = parse(metadata.get("card", "null"), origin)
        if not isinstance(card, dict) or card.get("format") != FORMAT:
            raise RunError(f"{path} is not a checkpoint of memmod: delete it and start anew")
        if card.get("version") != FORMAT_VERSION:
            raise RunError(
                f"the checkpoint {path} has format version {card.get('version')}, this memmod reads {FORMAT_VERSION}: "
                "go on with the memmod that wrote it, or start anew"
            )
        from memmod.files.schemas import CheckpointCard

        checked = check(card, CheckpointCard, origin)
        check_card(card, origin)
        check_tensors(card, flat, origin)
        tensors: dict[str, dict[str, Tensor]] = {}
        for key, tensor in flat.items():
            group, _, name = key.partition("/")
            tensors.setdefault(group, {})[name] = tensor
        return cls(checked.run, checked.progress, tensors)

    def checked_progress(self, type: type[T], groups: Sequence[str], path: str | os.PathLike[str]) -> T:
        """The progress as a msgspec Struct, in a checkpoint that holds these groups of tensors.

        Raises:
            RunError: a field is missing or of another type, or a group of tensors is missing.
        """
        origin = Origin(f"the progress in the checkpoint {path}", RunError, "delete it and start anew")
        missing = [group for group in groups if group not in self.tensors]
        if missing:
            origin.refuse(f"is damaged: it holds no {' and no '.join(missing)}")
        return check(self.progress, type, origin)

    def check_run(self, run: dict[str, Any], path: str | os.PathLike[str]) -> None:
        """Check that this checkpoint belongs to the round described by `run`.

        Raises:
            RunError: it does not; every field that differs is named with both values.
        """
        differing = [
            f"{name} was {self.run.get(name)!r}, now {run.get(name)!r}"
            for name in sorted(self.run.keys() | run.keys())
            if self.run.get(name) != run.get(name)
        ]
        if differing:
            raise RunError(
                f"the checkpoint {path} belongs to another run: {'; '.join(differing)}. "
                "Go on with the settings it was made with, or start anew in another folder"
            )


def optimiser_tensors(optimiser: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """The state of an optimiser over parameters of these names, as tensors "parameter:key"."""
    state = optimiser.state_dict()["state"]
    return {f"{names[i]}:{key}": value for i, values in state.items() for key, value in values.items()}


def load_optimiser(optimiser: torch.optim.Optimizer, names: list[str], tensors: dict[str, Tensor]) -> None:
    """Set the state of a fresh optimiser from `optimiser_tensors`.

    Raises:
        RunError: it is the state of other parameters.
    """
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, field_name = key.rpartition(":")
        shape = tuple(parameters[names.index(name)].shape) if name in names else None
        if shape is None or tuple(tensor.shape) not in ((), shape):
            raise RunError(
                f"the optimiser's state {key!r} of shape {tuple(tensor.shape)} fits none of the memories: "
                "delete the checkpoint and start anew"
            )
        like = parameters[names.index(name)].detach()
        state.setdefault(names.index(name), {})[field_name] = parted_like(tensor, like) if tensor.dim() else tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
