"""Folds a convolution and the BatchNorm behind it, in eval mode, into one convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from memmod.surgery.example import Example
from memmod.surgery.record import Surgery
from memmod.surgery.replace import plain_conv2d
from memmod.surgery.trace import Observation, run_example, same_output

# Folding moves logits by rounding alone; a pair that folds wrongly moves them by their own size.
FOLD_TOLERANCE = 1e-3


def foldable_pairs(model: nn.Module, observation: Observation) -> list[tuple[str, str]]:
    """Names of the (conv, norm) pairs that are one affine map in eval mode.

    The conv is exactly `nn.Conv2d` and ran once; its output went to one BatchNorm, which ran once, and nowhere else:
    every function that took it was recorded, so additions, in-place changes and second readers are seen.
    """
    modules = dict(model.named_modules())
    pairs = []
    for name, module in modules.items():
        if type(module) is not nn.Conv2d or len(observation.modules.get(name, ())) != 1 or has_hooks(module):
            continue
        output = observation.modules[name][0].outputs[0]
        consumers = observation.consumers(output)
        # The conv's own call returned this tensor and did not take it; Identity modules take and return it unseen.
        if len(consumers) != 1 or observation.is_returned(output) or consumers[0].name != "batch_norm":
            continue
        norm_name = consumers[0].module
        norm = modules[norm_name]
        if _folds(norm) and len(observation.modules[norm_name]) == 1 and norm.num_features == module.out_channels:
            pairs.append((name, norm_name))
    return pairs


def has_hooks(module: nn.Module) -> bool:
    """Whether replacing `module` would lose a hook, or a forward of its own, that somebody gave it."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _folds(norm: nn.Module) -> bool:
    own_activation = type(norm).__name__ == "BatchNormAct2d" and isinstance(norm, nn.BatchNorm2d)
    known = type(norm) is nn.BatchNorm2d or own_activation
    return known and norm.running_var is not None and not norm.training and not has_hooks(norm)


def folded_conv(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A new convolution equal to ``norm(conv(x))`` without the norm's activation; computed in fp64."""
    var, mean = norm.running_var.double(), norm.running_mean.double()
    gamma = torch.ones_like(var) if norm.weight is None else norm.weight.detach().double()
    beta = torch.zeros_like(var) if norm.bias is None else norm.bias.detach().double()
    scale = gamma / (var + norm.eps).sqrt()
    bias = 0.0 if conv.bias is None else conv.bias.detach().double()
    weight = conv.weight.detach()
    # Kept in the layout of the original, which strides alone tell.
    new_weight = torch.empty_like(weight).copy_(weight.double() * scale[:, None, None, None])
    return plain_conv2d(conv, new_weight, (beta + (bias - mean) * scale).to(weight.dtype))


def what_is_left(norm: nn.BatchNorm2d) -> nn.Module:
    """What stands in the norm's place once it is folded: the activation it carried, or nothing."""
    parts = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if isinstance(part, nn.Module)]
    parts = [part for part in parts if not isinstance(part, nn.Identity)]
    if not parts:
        return nn.Identity()
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


def fold(surgery: Surgery, observation: Observation, example: Example) -> dict[str, nn.BatchNorm2d]:
    """Fold every conv and BatchNorm pair that folds; returns the folded convs' names with their norms.

    The logits are compared with the unfolded model's; pairs that move them are undone.
    """
    pairs = foldable_pairs(surgery.model, observation)
    expected = observation.output
    for pair in pairs:
        _fold_pair(surgery, *pair)
    if pairs and not _same_output(surgery.model, example, expected):
        surgery.undo(2 * len(pairs))
        pairs = [pair for pair in pairs if _fold_if_it_agrees(surgery, pair, example, expected)]
    norms = {}
    for conv, norm in pairs:
        original = next(module for name, module in reversed(surgery.originals) if name == norm)
        norms[conv] = original
        surgery.note(norm, original, "folded", f"into {conv}")
    return norms


def _fold_pair(surgery: Surgery, conv_name: str, norm_name: str) -> None:
    conv, norm = surgery.model.get_submodule(conv_name), surgery.model.get_submodule(norm_name)
    surgery.replace(conv_name, folded_conv(conv, norm))
    surgery.replace(norm_name, what_is_left(norm))


def _fold_if_it_agrees(surgery: Surgery, pair: tuple[str, str], example: Example, expected: Any) -> bool:
    _fold_pair(surgery, *pair)
    agrees = _same_output(surgery.model, example, expected)
    if not agrees:
        surgery.undo(2)
    return agrees


def _same_output(model: nn.Module, example: Example, expected: Any) -> bool:
    with torch.no_grad():
        return same_output(run_example(model, example.args, example.kwargs), expected, FOLD_TOLERANCE)
