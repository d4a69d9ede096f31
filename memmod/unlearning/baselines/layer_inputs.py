"""What goes into the linear and conv layers of a network: the spaces that closed-form methods work in."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memmod.data import Split
from memmod.evaluation.accuracy import batches
from memmod.unlearning.baselines.method import ForgetTask

# Patches of more images at once take gigabytes in the first layers.
BATCH = 64

Layer = nn.Linear | nn.Conv2d


def layers_of(network: nn.Module) -> dict[str, Layer]:
    """The linear and 2d conv layers of a network by name, each once."""
    return {name: m for name, m in network.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}


@torch.no_grad()
def observe_inputs(task: ForgetTask, split: Split, see: Callable[[str, Tensor, Tensor], None]) -> None:
    """Run a split through the task's network and show what each layer is called with.

    Layers whose weights the network reads without calling them are not seen.

    Args:
        see: called with (layer's name, its input, labels ``[B]``).
    """
    network = task.network.eval()
    now: list[Tensor] = []

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _module, inputs: see(name, inputs[0], now[0])

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers_of(network).items()]
    try:
        for x, labels in batches(split, BATCH, task.device):
            now[:] = [labels.to(task.device)]
            network(x)
    finally:
        for handle in handles:
            handle.remove()


def weight_inputs(layer: Layer, x: Tensor) -> Tensor:
    """The vectors ``[groups, n, K]`` that a layer's weight rows are multiplied with in its input.

    For a convolution these are the patches under its kernel, K = in_channels / groups · kernel height · kernel width;
    for a linear layer the features, with one group.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding: tuple[int, ...] | int = 0
    elif isinstance(layer.padding, str):
        x = F.pad(x, layer._reversed_padding_repeated_twice)
        padding = 0
    else:
        padding = layer.padding
    patches = F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)
    return patches.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)


def grouped(layer: Layer) -> Tensor:
    """A layer's weight as ``[groups, outputs / groups, K]``, a view."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return layer.weight.detach().flatten(1).unflatten(0, (groups, -1))
