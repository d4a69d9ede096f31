"""Label expansion: which classes each sample of a batch is asked to forget (arXiv 2304.02049)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from memmod.errors import SelectionError


class Expansion(NamedTuple):
    """An expanded batch of N samples.

    `rows` int64 ``[N]``: the sample of the batch; `selection` int64 ``[N, S]``, padded with -1, no class twice in a
    row; `forget` bool ``[N]``: the sample's own class is selected.
    """

    rows: Tensor
    selection: Tensor
    forget: Tensor


def expand(labels: Tensor, num_classes: int, repeats: int, max_set_size: int, generator: torch.Generator) -> Expansion:
    """Give each sample of a batch its selections: half of them one class, half sets of 2 to `max_set_size` classes.

    The first half of the batch forgets: its sets hold the sample's own class. The other half is retained: each sample
    comes `repeats` times, every time with another random class first (as far as there are others), and no set holds
    its own class.

    Args:
        labels: int64 ``[B]``.
        repeats: T.
        max_set_size: S, below `num_classes`.

    Raises:
        SelectionError: sets that large would have to hold every class.
    """
    if not 1 <= max_set_size < num_classes:
        raise SelectionError(
            f"sets of up to {max_set_size} classes cannot be drawn of {num_classes}: a set must leave one class out, "
            f"so max_set_size lies between 1 and {num_classes - 1}"
        )
    forgotten = len(labels) // 2
    rows = torch.cat((torch.arange(forgotten), torch.arange(forgotten, len(labels)).repeat_interleave(repeats)))
    forget = torch.arange(len(rows)) < forgotten
    others = _other_classes(labels[forgotten:], num_classes, repeats, generator)
    first = torch.cat((labels[:forgotten], others.flatten()))
    selection = _extend(first, labels[rows], num_classes, max_set_size, generator)
    return Expansion(rows, selection, forget)


def _other_classes(labels: Tensor, num_classes: int, repeats: int, generator: torch.Generator) -> Tensor:
    """``[R, T]``: for each label, T other classes, none twice before all have come."""
    ranks = torch.rand(len(labels), num_classes, generator=generator)
    ranks.scatter_(1, labels.unsqueeze(1), 2.0)
    order = ranks.argsort(1)[:, : num_classes - 1]
    return order[:, torch.arange(repeats) % (num_classes - 1)]


def _extend(first: Tensor, own: Tensor, num_classes: int, size: int, generator: torch.Generator) -> Tensor:
    """``[N, size]``: `first`, and for half of the rows 1 to size - 1 other random classes, none the sample's own."""
    if size == 1:
        return first.unsqueeze(1)
    ranks = torch.rand(len(first), num_classes, generator=generator)
    ranks.scatter_(1, first.unsqueeze(1), -1.0).scatter_(1, own.unsqueeze(1), -1.0)
    more = ranks.topk(size - 1, dim=1).indices
    # Single classes are what is asked for most, and forgetting them carries over to unseen images least: the digits ViT
    # on two held-out thirds of its training images, two seeds each, kept 0.7 % on a selected class with every size as
    # likely, 0.3 % with half singles.
    single = torch.rand(len(first), 1, generator=generator) < 0.5
    wanted = torch.randint(1, size, (len(first), 1), generator=generator).masked_fill(single, 0)
    return torch.cat((first.unsqueeze(1), more.masked_fill(torch.arange(size - 1) >= wanted, -1)), 1)
