"""One batch of images as a step of unlearning, for a training loop of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memmod.errors import DataError
from memmod.unlearning.expansion import expand
from memmod.unlearning.objectives import Batch, Losses, gate_penalty, get_objective, raised, weighted

if TYPE_CHECKING:
    from memmod.model import ModulatedModel
    from memmod.unlearning.presets import UnlearnConfig


def unlearn_losses(
    wf: ModulatedModel,
    x: Any,
    labels: Tensor,
    config: UnlearnConfig,
    generator: torch.Generator,
    *,
    forward: Callable[..., Any] | None = None,
) -> Losses:
    """The losses of a batch of images under `config.objective`: `total` is what a step minimises (arXiv 2304.02049).

    The first half of the batch forgets its own classes, the rest is retained while others are forgotten: batches have
    to be shuffled. A step of `Trainer` without its statistics: of `config`, its steps, learning rate, clipping and
    `statistics_fraction` are the caller's to obey, or not.

    Args:
        x: ``[B, ...]``, what the model takes; B ≥ 2, of several classes.
        labels: int64 ``[B]``.
        generator: of the draws, on the CPU.
        forward: what is called in place of `wf`: a wrapper around it, as frameworks make (`DistributedDataParallel`).

    Raises:
        DataError: x and labels are not one batch, or labels are no classes of the model.
    """
    _check_batch(wf, x, labels)
    objective = get_objective(config.objective)
    frozen = None
    if objective.needs_frozen:
        with torch.no_grad():
            frozen = wf.logits(wf(x, forget=-1))
    sets = min(config.max_set_size, wf.num_classes - 1)
    expansion = expand(labels.cpu(), wf.num_classes, config.expansion, sets, generator)
    rows, selection, forget = (t.to(wf.device) for t in expansion)
    logits = wf.logits((forward or wf)(x[rows], forget=selection))
    batch = Batch(
        raised(logits, selection, config.margin),
        labels.to(wf.device)[rows],
        selection,
        forget,
        None if frozen is None else frozen[rows],
    )
    return weighted(objective.terms(batch), gate_penalty(list(wf.memory_parameters()), wf.config.gate), config.lambdas)


def _check_batch(wf: ModulatedModel, x: Tensor, labels: Tensor) -> None:
    if labels.dtype != torch.int64 or labels.dim() != 1 or len(labels) != len(x) or len(labels) < 2:
        raise DataError(
            f"a batch of unlearning is two images or more with an int64 label each, but there are {len(x)} images and "
            f"labels of {labels.dtype} and shape {tuple(labels.shape)}"
        )
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= wf.num_classes:
        raise DataError(
            f"the batch has labels from {least} to {most}; the model's classes are 0 to {wf.num_classes - 1}"
        )
