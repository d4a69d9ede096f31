"""What unlearning is measured against: the original network, a logit mask, and random gates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from memmod.evaluation.accuracy import BATCH, Accuracies, Selections, Tally, batches
from memmod.outputs import logits_of
from memmod.surgery.base_copy import detached_copy

if TYPE_CHECKING:
    from memmod.data import Split
    from memmod.model import ModulatedModel

ORIGINAL = "original"
LOGIT_MASK = "logit mask"
RANDOM_GATES = "random gates"


def without_gates(
    base: nn.Module,
    split: Split,
    selections: Selections,
    num_classes: int,
    *,
    batch_size: int = BATCH,
    logits_path: str | None = None,
    on_image: Callable[[int], None] | None = None,
) -> tuple[Accuracies, Accuracies]:
    """(original network, logit mask), from one pass of `base` over the split.

    The logit mask is the trivial rival: the selected classes' logits become -∞, the network stays as it is.

    Args:
        split: images ``[N, ...]`` and labels ``[N]``.
        selections: the classes to forget, each time.
        logits_path: where the logits are in what `base` returns, as `ModulateConfig.logits` says.
        on_image: called with the number of images after each forward pass.
    """
    device = next((p.device for p in base.parameters()), torch.device("cpu"))
    original, masked = Tally(selections, num_classes), Tally(selections, num_classes)
    training = base.training
    base.eval()
    try:
        with torch.no_grad():
            for x, labels in batches(split, batch_size, device):
                logits = logits_of(base(x), logits_path)
                for row, selection in enumerate(original.selections):
                    original.add(row, logits, labels)
                    masked.add(row, mask_logits(logits, selection), labels)
                if on_image is not None:
                    on_image(len(labels))
    finally:
        base.train(training)
    return original.accuracies(ORIGINAL), masked.accuracies(LOGIT_MASK)


def mask_logits(logits: Tensor, selection: Sequence[int]) -> Tensor:
    """logits ``[N, C]`` with the selected classes at -∞."""
    masked = logits.clone()
    masked[:, list(selection)] = -math.inf
    return masked


class LogitMask(nn.Module):
    """A network whose logits of some classes are -∞: the trivial rival, as a network of its own.

    Args:
        network: the original, not copied.
        classes: whose logits are masked.
        logits_path: where the logits are in what it returns, as `ModulateConfig.logits` says; the rest of the output
            stays as it is.
    """

    def __init__(self, network: nn.Module, classes: Sequence[int], logits_path: str | None = None) -> None:
        super().__init__()
        self.network = network
        self.logits_path = logits_path
        # in the state, so that a masked network's hash is not the network's
        self.register_buffer("masked", torch.tensor(sorted(classes)))

    def forward(self, x: Tensor) -> Any:
        output = self.network(x)
        logits = logits_of(output, self.logits_path)
        if isinstance(output, Tensor):
            return logits.index_fill(1, self.masked, -math.inf)
        logits.index_fill_(1, self.masked, -math.inf)
        return output


def random_gates(wf: ModulatedModel, seed: int = 0) -> ModulatedModel:
    """A copy whose memory rows are shuffled, each layer and class by itself: the same gates on random units."""
    shuffled = detached_copy(wf)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for memory in shuffled.memory_parameters():
            order = torch.rand(memory.shape, generator=generator).argsort(1)
            memory.copy_(memory.gather(1, order.to(memory.device)))
    return shuffled
