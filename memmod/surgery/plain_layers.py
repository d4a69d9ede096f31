"""Whether a layer is an ordinary one, and where its units are."""

from __future__ import annotations

from torch import nn

from memmod.surgery.fold import has_hooks


def is_plain(module: nn.Module) -> bool:
    """Whether the layer computes what its base class computes, from a weight of its own."""
    if "weight" not in module._parameters or has_hooks(module):
        return False
    if isinstance(module, nn.Conv2d):
        return type(module).forward is nn.Conv2d.forward and type(module)._conv_forward is nn.Conv2d._conv_forward
    return type(module).forward is nn.Linear.forward


def channel_dim(module: nn.Module) -> int:
    """The dimension of a layer's output along which its units lie."""
    return 1 if isinstance(module, nn.Conv2d) else -1
