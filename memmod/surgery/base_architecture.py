"""Bakes one selection into the base's own architecture: the norms that were folded return, with the gates in them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memmod.compiled import uncompiled_name
from memmod.errors import ModelError
from memmod.nn.modulated import Modulated
from memmod.surgery.bake import bake, selected_gates, unload
from memmod.surgery.example import Example
from memmod.surgery.heads import verified_in
from memmod.surgery.modify import Changes
from memmod.surgery.trace import run_example

# Splitting a folded pair again changes logits by rounding alone.
AGREEMENT = 1e-3


@torch.inference_mode(False)
def bake_into_base(
    model: nn.Module, changes: Changes, index: Tensor | None, threshold: float | None, example: Example
) -> nn.Module:
    """The base with the weights of `bake(model, changes, index, threshold)`, equal to that on the example.

    Where a BatchNorm was folded into the convolution in front of it, the norm returns with the base's statistics and
    the gates in its weight and bias; the rows of a closed unit are 0 in both. Where it cannot hold them (a norm
    without a weight, gates of inputs, biases outside of the gates) it returns as a plain shift.

    Raises:
        ModelError: the baked model is no longer of the base's architecture.
    """
    base = unload(model, changes).eval()
    if index is None:
        return base
    baked = bake(model, changes, index, threshold)
    state = {name: tensor.clone() for name, tensor in baked.state_dict().items()}
    layers = {uncompiled_name(name): layer for name, layer in model.named_modules() if isinstance(layer, Modulated)}
    for row in changes.rows:
        if row.action == "folded":
            conv, norm = row.reason.removeprefix("into "), row.name
            layer = layers.get(conv)
            s = None if layer is None else selected_gates(layer.memory, index, layer.gate, threshold)
            if s is None or layer.input_memory is not None or not layer.gate_bias or not _affine(base, norm):
                _split(state, base, conv, norm)
            else:
                _gate_norm(state, base, conv, norm, s)
    try:
        base.load_state_dict(state)
    except RuntimeError as error:
        raise _other_architecture(base, str(error)) from None
    with torch.no_grad():
        outputs = (run_example(network, example.args, example.kwargs) for network in (baked, base))
        expected, found = (verified_in(output, changes.config) for output in outputs)
    if not (found - expected).abs().max() <= AGREEMENT * expected.abs().max():
        raise _other_architecture(base, "it computes other logits")
    return base


def _affine(base: nn.Module, norm: str) -> bool:
    return base.get_submodule(norm).weight is not None


def _gate_norm(state: dict[str, Tensor], base: nn.Module, conv: str, norm: str, s: Tensor) -> None:
    """The base's layer and norm again, with gates ``[K]`` in the norm, and nothing left of closed units."""
    # gates of kind "identity" may be negative
    open_ = (s != 0).to(s.dtype)
    for name, tensor in base.get_submodule(conv).state_dict().items():
        state[f"{conv}.{name}"] = tensor * open_.view(-1, *(1,) * (tensor.dim() - 1)).to(tensor)
    if base.get_submodule(conv).bias is None:
        del state[f"{conv}.bias"]
    for name, tensor in base.get_submodule(norm).state_dict().items():
        state[f"{norm}.{name}"] = tensor * s.to(tensor) if name in ("weight", "bias") else tensor.clone()


def _split(state: dict[str, Tensor], base: nn.Module, conv: str, norm: str) -> None:
    layer = base.get_submodule(norm)
    bias = state.pop(f"{conv}.bias")
    if base.get_submodule(conv).bias is not None:
        state[f"{conv}.bias"] = torch.zeros_like(bias)
    for name, tensor in layer.state_dict().items():
        state[f"{norm}.{name}"] = tensor.clone()
    # y = x - running_mean: the mean is there whether or not the norm has a bias of its own
    state[f"{norm}.running_mean"] = -bias.to(layer.running_mean)
    state[f"{norm}.running_var"] = torch.full_like(layer.running_var, 1 - layer.eps)
    if layer.affine:
        state[f"{norm}.weight"] = torch.ones_like(layer.weight)
        state[f"{norm}.bias"] = torch.zeros_like(layer.bias)


def _other_architecture(base: nn.Module, why: str) -> ModelError:
    return ModelError(
        f"the baked model does not fit the architecture of {type(base).__name__} any more: {why}; bake it with "
        'architecture="folded", which returns a whole module'
    )
