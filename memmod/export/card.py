"""What an exported file says about itself: its classes, its base, and how it is called."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memmod.errors import ExportError

if TYPE_CHECKING:
    from memmod.model import ModulatedModel

# Where a file keeps its card: in a program an entry of the archive, in ONNX and safetensors an entry of the metadata.
ENTRY = "memmod.json"
KEY = "memmod"

INVALID = "every logit of the sample is NaN"


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Args:
        path: of the file.
        card: what it says about itself, JSON values.
        max_deviation: how far its logits are from the model's, as a share of the largest.
    """

    path: Path
    card: dict[str, Any]
    max_deviation: float


def checked_path(path: str | os.PathLike[str], suffix: str) -> Path:
    """The path of a file to write. Raises ExportError where it is a folder, or does not end in `suffix`."""
    path = Path(path)
    if path.suffix != suffix or path.is_dir():
        raise ExportError(f"{path} is no name for this file: it must end in {suffix}, and be no folder")
    return path


def card(
    wf: ModulatedModel,
    format: str,
    call: Sequence[str],
    inputs: dict[str, Tensor],
    batch: int,
    any_size: bool,
    selection: Tensor | None,
    index: Tensor | None,
    threshold: float | None,
) -> dict[str, Any]:
    """The card as JSON values.

    Args:
        call: lines of Python that load and call the file.
        inputs: an example of each input, by name, of `batch` samples.
        selection: an example of the input that selects, ``[B]`` or ``[B, S]``; None where the file has none.
        index: the classes that are forgotten for good.
    """
    import memmod

    names = wf.class_names
    forgotten = [] if index is None else sorted({c for c in index.flatten().tolist() if c >= 0})
    return {
        "format": format,
        "memmod_version": memmod.__version__,
        "torch_version": str(torch.__version__),
        "base_sha256": wf.base_sha256,
        "num_classes": wf.num_classes,
        "class_names": None if names is None else list(names),
        "inputs": {
            name: {"shape": _shape(tensor, batch, any_size), "dtype": _dtype(tensor)} for name, tensor in inputs.items()
        },
        "output": {"logits": {"shape": ["batch", wf.num_classes]}},
        "selection": None
        if selection is None
        else {
            "name": "forget",
            "shape": ["batch", "classes"][: selection.dim()],
            "dtype": "int64",
            "nothing": -1,
            "out_of_range": INVALID,
        },
        "forgotten": [{"class": c, "name": None if names is None else names[c]} for c in forgotten],
        "threshold": threshold,
        "call": list(call),
    }


def as_text(card: dict[str, Any]) -> str:
    """The card as it stands in a file."""
    return json.dumps(card, allow_nan=False)


def _shape(tensor: Tensor, batch: int, any_size: bool) -> list[int | str]:
    if tensor.dim() == 0 or tensor.shape[0] != batch:
        return list(tensor.shape)
    sizes = ["height", "width"] if any_size and tensor.dim() == 4 else list(tensor.shape[2:])
    return ["batch", *tensor.shape[1:2], *sizes]


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
