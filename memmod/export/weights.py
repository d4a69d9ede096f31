"""The weights of an ordinary module as a safetensors file."""

from __future__ import annotations

import os

from torch import nn

from memmod.files.atomic import write_atomically
from memmod.files.saveable_state import serialised_state


def write_state(path: str | os.PathLike[str], model: nn.Module, metadata: dict[str, str]) -> None:
    """Write the model's state dict as safetensors, whole or not at all.

    Raises:
        ModelError: an entry that safetensors does not keep.
    """
    write_atomically(path, serialised_state(model, metadata))
