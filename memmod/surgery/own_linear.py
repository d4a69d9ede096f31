"""Finds linear layers that are no `nn.Linear`: modules of somebody's own that multiply by one weight and add a bias."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memmod.nn.modulated import Modulated
from memmod.surgery.fold import has_hooks
from memmod.surgery.trace import ModuleCall, Observation

# A function that is not linear in the weight differs by its own size, half precision by a hundredth of that.
TOLERANCE = 1e-2


def own_linear_layers(model: nn.Module, observation: Observation) -> set[str]:
    """Names of the modules that computed ``x Wᵀ + b`` or ``x W + b`` on the example, from one weight of their own.

    `Conv1D` of Hugging Face's transformers, say, whose weight is ``[I, O]``.
    """
    return {
        name
        for name, module in model.named_modules()
        if _may_be_linear(module)
        and observation.modules.get(name)
        and all(_is_linear(module, call) for call in observation.modules[name])
    }


def weight_and_bias(module: nn.Module) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    """A layer's `weight` and `bias`; else its only parameter with two dimensions or more, and its only vector."""
    own = module._parameters
    if "weight" in own:
        return own["weight"], own.get("bias")
    parameters = [p for p in own.values() if p is not None]
    weights, vectors = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() == 1]
    return weights[0] if len(weights) == 1 else None, vectors[0] if len(vectors) == 1 else None


def _may_be_linear(module: nn.Module) -> bool:
    if isinstance(module, (nn.Linear, nn.Embedding, nn.EmbeddingBag, Modulated)) or module._modules:
        return False
    dims = sorted(p.dim() for p in module._parameters.values() if p is not None)
    return dims in ([2], [1, 2]) and all(p is None or p.is_floating_point() for p in module._parameters.values())


def _is_linear(module: nn.Module, call: ModuleCall) -> bool:
    if len(call.inputs) != 1 or len(call.outputs) != 1 or has_hooks(module):
        return False
    (x,), (y,) = call.inputs, call.outputs
    if x.dim() < 2 or not x.is_floating_point() or y.shape[:-1] != x.shape[:-1] or not x.numel():
        return False
    weight, bias = weight_and_bias(module)
    sizes = (y.shape[-1], x.shape[-1])
    with torch.no_grad():
        # Run again: what it returned may have been overwritten since.
        y = module(x)
        forms = [w for w in (weight, weight.mT) if w.shape == sizes and w.dtype == x.dtype]
        return any(_agree(F.linear(x, w, bias), y) for w in forms if bias is None or bias.shape == sizes[:1])


def _agree(actual: Tensor, expected: Tensor) -> bool:
    return bool((actual - expected).abs().max() <= TOLERANCE * expected.abs().max())
