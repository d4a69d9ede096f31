"""Objectives by name: what the forget and the retain samples of a batch are trained towards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from memmod.errors import RunError, SelectionError

# Keeps 1/CE finite where the network is certain; far below any cross-entropy that matters.
CERTAIN = 1e-6
# Bounds the per-sample inverse by 1/0.1 = 10: unbounded, single samples drive the loss to infinity.
SAMPLE_CERTAIN = 0.1
# A forget sample whose cross-entropy is beyond this is forgotten, and pushes no further.
FORGOTTEN = 5.0


@dataclass(frozen=True)
class Batch:
    """One step's samples, as the objectives see them.

    Args:
        logits: ``[N, C]`` of the modulated network under `selection`.
        labels: int64 ``[N]``.
        selection: int64 ``[N, S]``, -1 = nothing.
        forget: bool ``[N]``, True where a sample's own class is selected.
        frozen: ``[N, C]`` logits of the frozen network; None for objectives that do not use them.
    """

    logits: Tensor
    labels: Tensor
    selection: Tensor
    forget: Tensor
    frozen: Tensor | None = None


class Terms(NamedTuple):
    """The scalar terms of one batch, each its own mean; 0 where the batch has no such samples."""

    retain: Tensor
    forget: Tensor


class Losses(NamedTuple):
    """The weighted sum of a step, and its three terms before weighting."""

    total: Tensor
    retain: Tensor
    forget: Tensor
    gates: Tensor


@dataclass(frozen=True)
class Objective:
    """A named objective; `needs_frozen` says whether it reads the frozen network's logits."""

    name: str
    terms: Callable[[Batch], Terms]
    needs_frozen: bool


_objectives: dict[str, Objective] = {}


def objective(name: str, needs_frozen: bool = False) -> Callable[[Callable[[Batch], Terms]], Callable[[Batch], Terms]]:
    """Register a function from a `Batch` to its `Terms` under a `name`.

    With `needs_frozen` the batch holds the logits of the base, with nothing selected, too.
    """

    def register(terms: Callable[[Batch], Terms]) -> Callable[[Batch], Terms]:
        _objectives[name] = Objective(name, terms, needs_frozen)
        return terms

    return register


def objective_names() -> tuple[str, ...]:
    """All names, the default first."""
    return tuple(_objectives)


def get_objective(name: str) -> Objective:
    """The objective of that name.

    Raises:
        RunError: there is none.
    """
    if name not in _objectives:
        raise RunError(f"unknown objective {name!r}; it must be one of {', '.join(map(repr, _objectives))}")
    return _objectives[name]


@objective("masked-distillation", needs_frozen=True)
def masked_distillation(batch: Batch) -> Terms:
    """KL to the frozen network's own softmax with the selected classes at -∞, for forget and retain samples alike.

    Raises:
        SelectionError: a selection covers all classes, so that no target is left.
    """
    target = masked_target(batch.frozen, batch.selection)
    divergence = F.kl_div(batch.logits.float().log_softmax(1), target, reduction="none").sum(1)
    return Terms(_mean(divergence, ~batch.forget), _mean(divergence, batch.forget))


@objective("inverse-ce")
def inverse_ce(batch: Batch) -> Terms:
    """CE(retain) and 1 / CE(forget), the published loss (arXiv 2304.02049)."""
    ce = _cross_entropy(batch)
    return Terms(_mean(ce, ~batch.forget), _where_any(batch.forget, 1 / (_mean(ce, batch.forget) + CERTAIN)))


@objective("inverse-ce-per-class")
def inverse_ce_per_class(batch: Batch) -> Terms:
    """CE(retain) and the mean over the forgotten classes of 1 / (a class's mean CE): no class hides in the mean."""
    ce = _cross_entropy(batch)
    # a product instead of index_add, whose order of summation is not fixed on CUDA
    members = F.one_hot(batch.labels, batch.logits.shape[1]).to(ce.dtype) * batch.forget.unsqueeze(1)
    counts = members.sum(0)
    of_class = (members * ce.unsqueeze(1)).sum(0) / counts.clamp_min(1)
    return Terms(_mean(ce, ~batch.forget), _mean(1 / (of_class + CERTAIN), counts > 0))


@objective("inverse-ce-per-sample")
def inverse_ce_per_sample(batch: Batch) -> Terms:
    """CE(retain) and the mean of 1 / (CE + 0.1) of each forget sample."""
    ce = _cross_entropy(batch)
    return Terms(_mean(ce, ~batch.forget), _mean(1 / (ce + SAMPLE_CERTAIN), batch.forget))


@objective("negative-ce")
def negative_ce(batch: Batch) -> Terms:
    """CE(retain) and -CE of each forget sample, no further than 5."""
    ce = _cross_entropy(batch)
    return Terms(_mean(ce, ~batch.forget), _mean(-ce.clamp_max(FORGOTTEN), batch.forget))


@objective("kl-uniform")
def kl_uniform(batch: Batch) -> Terms:
    """CE(retain) and the KL of the uniform distribution to the network's own on forget samples."""
    ce = _cross_entropy(batch)
    divergence = -batch.logits.float().log_softmax(1).mean(1) - math.log(batch.logits.shape[1])
    return Terms(_mean(ce, ~batch.forget), _mean(divergence, batch.forget))


def selected_classes(selection: Tensor, num_classes: int) -> Tensor:
    """bool ``[N, C]``: the classes of each selection ``[N, S]`` (-1 = nothing)."""
    # -1 selects a column of its own behind the last class
    selected = torch.zeros(selection.shape[0], num_classes + 1, dtype=torch.bool, device=selection.device)
    return selected.scatter_(1, selection.remainder(num_classes + 1), True)[:, :num_classes]


def raised(logits: Tensor, selection: Tensor, margin: float) -> Tensor:
    """Logits ``[N, C]`` with `margin` added to those of the classes of selection ``[N, S]``."""
    return logits if margin == 0 else logits + margin * selected_classes(selection, logits.shape[1])


def masked_target(frozen: Tensor, selection: Tensor) -> Tensor:
    """softmax of frozen logits ``[N, C]`` with the classes of selection ``[N, S]`` (-1 = nothing) at -∞.

    Raises:
        SelectionError: a selection covers all C classes.
    """
    classes = frozen.shape[1]
    selected = selected_classes(selection, classes)
    if selection.shape[1] >= classes and bool(selected.all(1).any()):
        raise SelectionError(
            f"a selection covers all {classes} classes, so that distillation has no target left: "
            f"select at most {classes - 1} classes"
        )
    return frozen.float().masked_fill(selected, -math.inf).softmax(1)


def gate_penalty(memories: Sequence[Tensor], gate: str) -> Tensor:
    """The mean over all entries of all memories ``[C, K]`` of 1 - gate; of |1 - gate| for the identity gate."""
    closed = [(1 - memory).abs() if gate == "identity" else (-memory).sigmoid() for memory in memories]
    return torch.stack([part.sum() for part in closed]).sum() / sum(memory.numel() for memory in memories)


def weighted(terms: Terms, penalty: Tensor, lambdas: tuple[float, float, float]) -> Losses:
    """λ₀·retain + λ₁·forget + λ₂·penalty (arXiv 2304.02049), with its parts."""
    total = lambdas[0] * terms.retain + lambdas[1] * terms.forget + lambdas[2] * penalty
    return Losses(total, terms.retain, terms.forget, penalty)


def _cross_entropy(batch: Batch) -> Tensor:
    return F.cross_entropy(batch.logits.float(), batch.labels, reduction="none")


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values, 0 where there are none; shapes do not depend on how many are chosen."""
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp_min(1)


def _where_any(chosen: Tensor, value: Tensor) -> Tensor:
    return torch.where(chosen.any(), value, 0.0)
