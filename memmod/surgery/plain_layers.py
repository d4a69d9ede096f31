"""Whether a layer is an ordinary one, and where its units are."""

from __future__ import annotations

from torch import Tensor, nn

from memmod.surgery.fold import has_hooks


def is_plain(module: nn.Module) -> bool:
    """Whether the layer computes what its base class computes, from an ordinary weight of its own."""
    # A subclass of tensors (a quantised weight, say) is read by functions that know it, which the layer calls.
    if type(module._parameters.get("weight")) not in (nn.Parameter, Tensor) or has_hooks(module):
        return False
    if isinstance(module, nn.Conv2d):
        return type(module).forward is nn.Conv2d.forward and type(module)._conv_forward is nn.Conv2d._conv_forward
    return type(module).forward is nn.Linear.forward


def channel_dim(module: nn.Module) -> int:
    """The dimension of a layer's output along which its units lie."""
    return 1 if isinstance(module, nn.Conv2d) else -1
