"""What the cards of memory files, bases and checkpoints must hold, as msgspec structs."""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec
import torch

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
# A channel, height or width in base.json, and their product: a network for larger images would not fit the memory.
Side = Annotated[int, msgspec.Meta(ge=1, le=2**16)]
LARGEST_IMAGE = 2**26
# Since this format version memory files and bases hold the hashes of their tensors and of their card.
SEALED_SINCE = 2

as_dict = msgspec.structs.asdict


class StoredConfig(msgspec.Struct, frozen=True):
    """What a memory file holds of a `ModulateConfig`: `granularity` and `gate` are checked there."""

    granularity: str
    gate: str
    gate_bias: bool
    skip: tuple[str, ...]
    fold: bool
    init: Annotated[float, msgspec.Meta(ge=torch.finfo(torch.float32).min, le=torch.finfo(torch.float32).max)]
    logits: str | None = None
    fuse: bool = True
    behind: bool = False
    output: str | None = None


class MemoryCard(msgspec.Struct, frozen=True):
    """What the card of a memory file must hold; what else is in it belongs to its maker."""

    format: str
    version: Annotated[int, msgspec.Meta(ge=1)]
    num_classes: Annotated[int, msgspec.Meta(ge=1)]
    class_names: tuple[str, ...] | None
    base_sha256: Sha256
    input_shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    config: dict[str, Any]
    layers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    tensors_sha256: Sha256 | None = None
    card_sha256: Sha256 | None = None

    def __post_init__(self) -> None:
        class_names_fit(self.num_classes, self.class_names)
        if self.version >= SEALED_SINCE and None in (self.tensors_sha256, self.card_sha256):
            raise ValueError(f"tensors_sha256 or card_sha256 is missing, which format version {self.version} has")


class BaseCard(msgspec.Struct, frozen=True):
    """What base.json must hold; what else is in it is kept. Those of format version 1 have no hashes."""

    model: Annotated[str, msgspec.Meta(min_length=1)]
    num_classes: Annotated[int, msgspec.Meta(ge=1)]
    input_shape: tuple[Side, Side, Side]
    class_names: tuple[str, ...]
    data: str | None = None
    training: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    version: Annotated[int, msgspec.Meta(ge=1)] = 1
    tensors_sha256: Sha256 | None = None
    card_sha256: Sha256 | None = None

    def __post_init__(self) -> None:
        class_names_fit(self.num_classes, self.class_names)
        if math.prod(self.input_shape) > LARGEST_IMAGE:
            raise ValueError(f"input_shape is {list(self.input_shape)}, more than {LARGEST_IMAGE} values an image")
        if self.version >= SEALED_SINCE and None in (self.tensors_sha256, self.card_sha256):
            raise ValueError(f"tensors_sha256 or card_sha256 is missing, which format version {self.version} has")


class CheckpointCard(msgspec.Struct, frozen=True):
    """The card of a checkpoint; `progress` is checked by what it is the progress of."""

    format: str
    version: int
    run: dict[str, Any]
    progress: dict[str, Any]
    tensors_sha256: Sha256
    card_sha256: Sha256


class ShardedCheckpointCard(msgspec.Struct, frozen=True):
    """The card of a checkpoint in parts: `folder` holds the `files`, by name with their SHA-256, of the `tensors`.

    Of each tensor its dtype and shape.
    """

    format: str
    version: int
    folder: Annotated[str, msgspec.Meta(pattern="^step-[0-9]+-[0-9a-f]+$")]
    run: dict[str, Any]
    progress: dict[str, Any]
    tensors: dict[str, tuple[str, list[Annotated[int, msgspec.Meta(ge=0)]]]]
    files: dict[str, Sha256]
    card_sha256: Sha256


class TrainingProgress(msgspec.Struct, frozen=True):
    """How far the training of a base is."""

    step: Annotated[int, msgspec.Meta(ge=0)]
    losses: list[float]
    environment: dict[str, Any]


def class_names_fit(num_classes: int, class_names: tuple[str, ...] | None) -> None:
    """Check class names against their number. Raises ValueError, which `check` words."""
    if class_names is None:
        return
    if len(class_names) != num_classes:
        raise ValueError(f"num_classes is {num_classes}, but class_names holds {len(class_names)}")
    if len(set(class_names)) != num_classes:
        repeated = sorted({name for name in class_names if class_names.count(name) > 1})
        raise ValueError(f"class_names repeats {', '.join(map(repr, repeated[:8]))}")
