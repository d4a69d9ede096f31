"""The state of an unfinished round: safetensors with a JSON card, never a pickle, written whole or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from memmod.errors import RunError
from memmod.memory import write_atomically

FILE_NAME = "checkpoint.safetensors"
FORMAT = "memmod-checkpoint"
FORMAT_VERSION = 1


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

    def save(self, path: str | os.PathLike) -> None:
        """Write the checkpoint; a process killed meanwhile leaves the previous one."""
        card = {"format": FORMAT, "version": FORMAT_VERSION, "run": self.run, "progress": self.progress}
        flat = {
            f"{group}/{name}": tensor.detach().cpu().contiguous()
            for group, tensors in self.tensors.items()
            for name, tensor in tensors.items()
        }
        write_atomically(path, serialise(flat, metadata={"card": json.dumps(card)}))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            RunError: it is missing, cut short, no checkpoint, or of another format version.
        """
        if not Path(path).is_file():
            raise RunError(f"there is no checkpoint at {path}")
        try:
            with safe_open(str(path), framework="pt") as file:
                card = json.loads((file.metadata() or {}).get("card", "null"))
                flat = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError, ValueError) as error:
            raise RunError(f"the checkpoint {path} is damaged ({error}): delete it and start anew") from error
        if not isinstance(card, dict) or card.get("format") != FORMAT:
            raise RunError(f"{path} is not a checkpoint of memmod: delete it and start anew")
        if card.get("version") != FORMAT_VERSION:
            raise RunError(
                f"the checkpoint {path} has format version {card.get('version')}, this memmod reads {FORMAT_VERSION}: "
                "go on with the memmod that wrote it, or start anew"
            )
        tensors: dict[str, dict[str, Tensor]] = {}
        for key, tensor in flat.items():
            group, name = key.split("/", 1)
            tensors.setdefault(group, {})[name] = tensor
        return cls(card["run"], card["progress"], tensors)

    def check_run(self, run: dict[str, Any], path: str | os.PathLike) -> None:
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
    """Set the state of a fresh optimiser from `optimiser_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, field_name = key.rsplit(":", 1)
        state.setdefault(names.index(name), {})[field_name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
