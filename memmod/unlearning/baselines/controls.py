"""Trivial rivals, which leave everything in the network that knows the class: nothing, a logit mask, a bias shift.

The logit mask is what inference code can do without unlearning. The bias shift is its form in weights: A. Hatami,
R. Aalishah, I. E. Monosov, arXiv 2604.15166, report that several methods forget by little else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memmod.errors import ModelError
from memmod.evaluation.accuracy import BATCH, batches
from memmod.evaluation.controls import LogitMask
from memmod.unlearning.baselines.method import ForgetTask, Method

INDEX_BYTES = 8


@dataclass(frozen=True)
class ControlConfig:
    """Controls have no settings."""


def nothing(task: ForgetTask, _config: ControlConfig) -> nn.Module:
    """The original network."""
    return task.network.eval()


def mask(task: ForgetTask, _config: ControlConfig) -> nn.Module:
    """The original network in a `LogitMask`."""
    return LogitMask(task.network, task.classes, task.logits_path).eval()


def shift(task: ForgetTask, _config: ControlConfig) -> nn.Module:
    """Lower the forgotten classes' biases in the head, each by as much as it takes to win on no training image.

    Raises:
        ModelError: no head with a bias for every class.
    """
    network = task.network.eval()
    head = head_of(network, task.num_classes)
    lead = largest_lead(task)
    with torch.no_grad():
        # a tie would go to the class of the lower number
        head.bias -= torch.where(task.is_forgotten().to(lead.device), lead.clamp(min=0) * 1.001 + 1e-3, 0.0)
    return network


@torch.no_grad()
def largest_lead(task: ForgetTask) -> Tensor:
    """``[C]``: the most by which each class's logit exceeds the best of the classes that stay, over training images."""
    forgotten = task.is_forgotten().to(task.device)
    leads = []
    for split in (task.retain, task.forget):
        for x, _ in batches(split, BATCH, task.device):
            logits = task.logits(task.network, x)
            best = logits.masked_fill(forgotten, -math.inf).amax(1, keepdim=True)
            leads.append((logits - best).amax(0))
    return torch.stack(leads).amax(0)


def head_of(network: nn.Module, num_classes: int) -> nn.Linear | nn.Conv2d:
    """The layer that makes the logits: `get_classifier()`, else the last linear or conv layer of C outputs.

    Raises:
        ModelError: there is none, or it has no bias.
    """
    named = network.get_classifier() if hasattr(network, "get_classifier") else None
    found = [
        layer
        for layer in [*network.modules(), named]
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.weight.shape[0] == num_classes
    ]
    if not found or found[-1].bias is None:
        what = "layer with a bias and" if found else "layer with"
        raise ModelError(
            f"{type(network).__name__} has no last {what} {num_classes} outputs, whose bias could be shifted"
        )
    return found[-1]


def _index_bytes(task: ForgetTask, _config: ControlConfig, _network: nn.Module) -> int:
    return INDEX_BYTES * len(task.classes)


def _bias_bytes(task: ForgetTask, _config: ControlConfig, network: nn.Module) -> int:
    bias = head_of(network, task.num_classes).bias
    return (INDEX_BYTES + bias.element_size()) * len(task.classes)


NOTHING = Method(
    name="nothing",
    paper="the original network",
    config=ControlConfig,
    run=nothing,
    uses_retained=False,
    is_control=True,
    stored=lambda _task, _config, _network: 0,
)
LOGIT_MASK = Method(
    name="logit-mask",
    paper="the original network with the classes' logits at −∞",
    config=ControlConfig,
    run=mask,
    uses_retained=False,
    is_control=True,
    wraps=True,
    stored=_index_bytes,
)
BIAS_SHIFT = Method(
    name="bias-shift",
    paper="the original network with the classes' biases lowered; Hatami, Aalishah, Monosov 2026, arXiv 2604.15166",
    config=ControlConfig,
    run=shift,
    is_control=True,
    stored=_bias_bytes,
)
