"""Whether a map depends on what it claims to: on the memories, on their row, and on the class that was asked for.

After Adebayo and others (arXiv 1810.03292): a map that stays as it was when what it explains has been scrambled says
nothing of it. Each check is of an image's two maps, and their similarity is good where it is low.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from memmod.errors import SelectionError
from memmod.explain.attribution import Attribution, attribute
from memmod.model import ModulatedModel


@contextmanager
def permuted_memories(wf: ModulatedModel, seed: int = 0) -> Iterator[None]:
    """While open, the units of every memory have changed places, by a permutation of its own for every class.

    The memories themselves are changed: no other thread may call the model meanwhile.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = wf.memory_state()
    try:
        wf.load_memory_state({name: _permuted(memory, generator) for name, memory in kept.items()})
        yield
    finally:
        wf.load_memory_state(kept)


def _permuted(memory: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.rand(memory.shape, generator=generator).argsort(1).to(memory.device)
    return memory.gather(1, order)


def other_classes(classes: Tensor, count: int, seed: int = 0) -> Tensor:
    """For each sample's class ``[B]`` another one of `count`, drawn by the seed: int64 ``[B]``.

    Raises:
        SelectionError: there is no other.
    """
    if count < 2:
        raise SelectionError(f"the number of classes is {count}, so that none has another")
    generator = torch.Generator().manual_seed(seed)
    return (classes + torch.randint(1, count, classes.shape, generator=generator).to(classes.device)) % count


def with_permuted_memories(wf: ModulatedModel, x: Tensor, classes: Tensor, seed: int = 0) -> Tensor:
    """The maps of the gates' path ``[B, H, W]`` with permuted memories."""
    with permuted_memories(wf, seed):
        return attribute(wf, x, classes).image()


def with_another_row(wf: ModulatedModel, x: Tensor, classes: Tensor, seed: int = 0) -> Tensor:
    """The maps of the gates' path ``[B, H, W]`` of the same logits, where another class's row closes the gates."""
    return attribute(wf, x, other_classes(classes, wf.num_classes, seed), classes=classes).image()


def sum_errors(attribution: Attribution) -> Tensor:
    """How far each sample's parts miss what forgetting takes from its logit, as a share of that: ``[B]``."""
    return attribution.residual.abs() / attribution.drop.abs()
