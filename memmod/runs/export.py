"""Writes a baked model as an ordinary state dict, one that loads into the base's own architecture."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from memmod.errors import ModelError
from memmod.files.atomic import write_atomically
from memmod.files.saveable_state import serialised_state
from memmod.outputs import logits_of

if TYPE_CHECKING:
    from memmod.model import ModulatedModel

# Splitting a folded pair again changes logits by rounding alone.
AGREEMENT = 1e-3


def in_base_architecture(
    wf: ModulatedModel, forget: Collection[int], base: nn.Module, x: Tensor, threshold: float | None = None
) -> nn.Module:
    """A copy of `base` with the weights of ``wf.bake(forget, threshold)``, equal to it on x ``[B, ...]``.

    Where a BatchNorm was folded into the convolution in front of it, the norm returns with the base's statistics and
    the gates in its weight and bias; the rows of a closed unit are 0 in both. Where it cannot hold them (a norm
    without a weight, gates of inputs, biases outside of the gates) it returns as a plain shift.

    Args:
        forget: the classes, for every sample.
        threshold: gates below it are exactly 0.

    Raises:
        ModelError: the baked model is no longer of the base's architecture.
    """
    baked = wf.bake(set(forget), threshold)
    state = {name: tensor.clone() for name, tensor in baked.state_dict().items()}
    gates = wf.gates()
    for row in wf.summary().rows:
        if row.action == "folded":
            conv, norm = row.reason.removeprefix("into "), row.name
            s = gates.get(f"{conv}.memory")
            if s is None or f"{conv}.input_memory" in gates or not wf.config.gate_bias or not _affine(base, norm):
                _split(state, base, conv, norm)
                continue
            s = s[list(forget)].prod(0)
            _gate_norm(state, base, conv, norm, s if threshold is None else torch.where(s < threshold, 0.0, s))
    model = copy.deepcopy(base)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise _other_architecture(base, str(error)) from None
    model.eval()
    with torch.no_grad():
        expected, found = (logits_of(network(x), wf.config.logits) for network in (baked, model))
    if not (found - expected).abs().max() <= AGREEMENT * expected.abs().max():
        raise _other_architecture(base, "it computes other logits")
    return model


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
        f"the baked model does not fit the architecture of {type(base).__name__} any more: {why}; bake it in Python "
        "with ModulatedModel.bake(), which returns a whole module"
    )


def write_state(path: str | os.PathLike[str], model: nn.Module, metadata: dict[str, str]) -> None:
    """Write the model's state dict as safetensors, whole or not at all."""
    write_atomically(path, serialised_state(model, metadata))
