"""The outputs in a network that have places in the image: of gated layers, and of the blocks around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memmod.explain.gate_path import UNITS, gated_layers, in_this_thread, memory_name, unit_dim
from memmod.explain.placement import Place, places
from memmod.model import ModulatedModel


@dataclass(frozen=True)
class PlacedOutput:
    """A module's output: the dim of its channels, and where its positions lie in the image."""

    module: nn.Module
    dim: int
    place: Place


def layer_outputs(wf: ModulatedModel, shape: Sequence[int]) -> dict[str, PlacedOutput]:
    """Of the gated layers whose units have places in an image ``[C, H, W]``, by name; of several calls the last."""
    where = places(wf, shape)
    found = {
        name: PlacedOutput(layer, unit_dim(layer), where[memory_name(name, UNITS)][-1])
        for name, layer in gated_layers(wf).items()
        if layer.memory is not None
    }
    return {name: output for name, output in found.items() if bool((output.place.cells >= 0).any())}


@torch.no_grad()
def block_outputs(wf: ModulatedModel, shape: Sequence[int]) -> dict[str, PlacedOutput]:
    """Of the modules around gated layers, in the order that they end in, where they keep a layer's grid or tokens."""
    layers = layer_outputs(wf, shape)
    blocks = {name.rsplit(".", depth)[0] for name in layers for depth in range(1, name.count(".") + 1)}
    found: dict[str, PlacedOutput] = {}

    def see(name: str, block: nn.Module, output: object) -> None:
        for layer in reversed([layer for layer in layers if layer.startswith(f"{name}.")]):
            dim = _channels(output, layers[layer].place)
            if dim is not None:
                found[name] = PlacedOutput(block, dim, layers[layer].place)
                return

    modules = dict(wf.model.named_modules())
    handles = [
        modules[name].register_forward_hook(
            in_this_thread(lambda block, _args, output, name=name: see(name, block, output))
        )
        for name in sorted(blocks)
    ]
    like = next(wf.model.parameters())
    try:
        wf(torch.zeros(2, *shape, device=like.device, dtype=like.dtype), forget=-1)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _channels(output: object, place: Place) -> int | None:
    """The dim of an output's channels, if its positions are those of a place, in their order."""
    # Windows are in an order of their own, which a block around them has undone.
    if not isinstance(output, Tensor) or bool((place.cells.diff() < 0).any()):
        return None
    if output.dim() == 3:
        return -1 if output.shape[1] == len(place.cells) else None
    if output.dim() == 4 and len(place.cells) == math.prod(place.grid):
        if tuple(output.shape[2:]) == place.grid:
            return 1
        return -1 if tuple(output.shape[1:3]) == place.grid else None
    return None
