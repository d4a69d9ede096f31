"""What is explained: one number for each sample, from its logits and a class."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from memmod.errors import SelectionError

Target = Callable[[Tensor, Tensor], Tensor]


def logit(logits: Tensor, classes: Tensor) -> Tensor:
    """The class's logit: logits ``[B, C]``, classes int64 ``[B]`` → ``[B]``."""
    return logits.gather(1, classes.unsqueeze(1)).squeeze(1)


def margin(logits: Tensor, classes: Tensor) -> Tensor:
    """The class's logit above the highest of the others: ``[B, C]``, ``[B]`` → ``[B]``."""
    others = logits.masked_fill(
        torch.zeros_like(logits, dtype=torch.bool).scatter_(1, classes.unsqueeze(1), True), -torch.inf
    )
    return logit(logits, classes) - others.amax(1)


def log_probability(logits: Tensor, classes: Tensor) -> Tensor:
    """The logarithm of the class's probability: ``[B, C]``, ``[B]`` → ``[B]``."""
    return logit(logits.log_softmax(1), classes)


TARGETS: dict[str, Target] = {"logit": logit, "margin": margin, "log-probability": log_probability}
"""What `attribute` can take apart, by name: functions of logits ``[B, C]`` and classes ``[B]``."""


def target_of(target: str | Target) -> Target:
    """The function of this name; a function (logits ``[B, C]``, classes ``[B]``) → ``[B]`` is taken as it is.

    Raises:
        SelectionError: an unknown name.
    """
    if callable(target):
        return target
    if target not in TARGETS:
        raise SelectionError(f"target is {target!r}; it must be one of {', '.join(map(repr, TARGETS))}, or a function")
    return TARGETS[target]
