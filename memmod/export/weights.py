"""Baked weights as safetensors, for the base's own code."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from memmod.errors import SelectionError
from memmod.export.card import KEY, Exported, as_text, card, checked_path
from memmod.export.graph import argument_names
from memmod.files.atomic import write_atomically
from memmod.files.saveable_state import serialised_state
from memmod.selection import to_index
from memmod.surgery.trace import run_example

if TYPE_CHECKING:
    from memmod.model import ModulatedModel
    from memmod.selection import Forget


def safetensors(
    wf: ModulatedModel,
    path: str | os.PathLike[str],
    *,
    forget: Forget,
    threshold: float | None = None,
    example_input: Any = None,
) -> Exported:
    """Write ``wf.bake(forget, threshold, architecture="base")`` as safetensors: a state dict of the base's keys.

    Any instance of the base's architecture loads it: ``model.load_state_dict(load_file(path))``. The metadata entry
    `memmod` is a card with the classes and the base.

    Args:
        forget: what every sample forgets for good.
        threshold: gates below it become exactly 0.
        example_input: what the file is checked with; default: random images of the model's shape.

    Raises:
        SelectionError: nothing to forget, or a selection that differs between samples.
        ModelError: the base's architecture cannot hold the gates.
    """
    path = checked_path(path, ".safetensors")
    index = None if forget is None else to_index(forget, wf.num_classes, wf.class_names, wf.device)
    if index is None:
        raise SelectionError(
            "a file of weights has no selection as an input: name the classes to forget for good, or export a program"
        )
    example = wf.checking_example(example_input)
    model = wf.bake(forget, threshold, "base", example_input)
    call = [
        "from safetensors.torch import load_file",
        f"model.load_state_dict(load_file({path.name!r}))",
        "model.eval()",
    ]
    inputs = dict(zip(argument_names(wf.model, example), example.args, strict=True)) | example.kwargs
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    about = card(wf, "safetensors", call, tensors, example.batch, False, None, index, threshold)
    content = serialised_state(model, {KEY: as_text(about)})
    model.load_state_dict(load(content))
    with torch.no_grad():
        outputs = [run_example(m, example.args, example.kwargs) for m in (wf.bake(forget, threshold), model)]
    expected, found = (wf.logits(output) for output in outputs)
    write_atomically(path, content)
    return Exported(path, about, float((found - expected).abs().max() / expected.abs().max()))


def write_state(path: str | os.PathLike[str], model: nn.Module, metadata: dict[str, str]) -> None:
    """Write the model's state dict as safetensors, whole or not at all.

    Raises:
        ModelError: an entry that safetensors does not keep.
    """
    write_atomically(path, serialised_state(model, metadata))
