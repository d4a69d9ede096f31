"""A quick estimate of all classes' accuracies: every image with its own class selected, and with a few others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memmod.evaluation.accuracy import BATCH

if TYPE_CHECKING:
    from memmod.data import Split
    from memmod.model import ModulatedModel

MOST_BYTES = 2**30

ByShares = Callable[[int, Callable[[Tensor], Tensor]], Tensor]


@dataclass(frozen=True)
class SampledAccuracies:
    """Accuracy on each class with it selected, `acc_forget`; `mean_retain`, the mean over other classes' images."""

    acc_forget: tuple[float, ...]
    mean_retain: float

    @property
    def worst_forget(self) -> float:
        """The highest accuracy of a class that is selected."""
        return max(self.acc_forget)

    @property
    def worst_class(self) -> int:
        """The class of `worst_forget`."""
        return self.acc_forget.index(self.worst_forget)

    @property
    def mean_forget(self) -> float:
        """The mean of `acc_forget`."""
        return sum(self.acc_forget) / len(self.acc_forget)


class SampledSplit:
    """A split held ready for repeated estimates: its images, each with the same few other classes every time.

    The images are kept where they take at most 1 GiB, else read for each estimate.

    Args:
        split: images ``[N, ...]`` of every class.
        num_classes: C.
        others: how many other classes each image is run with, at most C - 1.
        by_shares: runs a function of row numbers ``[n]`` on all of so many rows and puts the results together; default:
            at once. `memmod.distributed.processes.by_shares` splits them over processes.
    """

    def __init__(
        self,
        split: Split,
        num_classes: int,
        others: int,
        generator: torch.Generator,
        by_shares: ByShares | None = None,
    ) -> None:
        self.split = split
        first = split.batch(torch.arange(min(len(split), BATCH)))
        held = first.numel() * first.element_size() * len(split) <= MOST_BYTES * len(first)
        rest = torch.arange(len(first), len(split))
        self.images = None
        if held:
            self.images = torch.cat([first, split.batch(rest)]) if len(rest) else first
        self.labels = split.labels
        self.num_classes = num_classes
        self.by_shares = by_shares or (lambda rows, run: run(torch.arange(rows)))
        drawn = []
        # In parts: of 21,000 classes the ranks of all images would take 7 GB.
        for own in self.labels.split(BATCH):
            ranks = torch.rand(len(own), num_classes, generator=generator)
            ranks.scatter_(1, own.unsqueeze(1), 2.0)
            drawn.append(ranks.argsort(1)[:, : min(others, num_classes - 1)].clone())
        self.others = torch.cat(drawn)

    def accuracies(self, wf: ModulatedModel) -> SampledAccuracies:
        """The estimate for a modulated model: 1 + `others` forward passes per image."""
        own = self._right(wf, self.labels)
        retained = torch.stack([self._right(wf, selection) for selection in self.others.unbind(1)])
        right = torch.bincount(self.labels, weights=own.double(), minlength=self.num_classes)
        images = torch.bincount(self.labels, minlength=self.num_classes)
        return SampledAccuracies(tuple((right / images).tolist()), retained.double().mean().item())

    def base_accuracy(self, wf: ModulatedModel) -> float:
        """The accuracy with nothing selected, on the same images."""
        return self._right(wf, torch.full_like(self.labels, -1)).double().mean().item()

    def _right(self, wf: ModulatedModel, selection: Tensor) -> Tensor:
        """bool ``[N]``: whether each image is classified as its label under its selection ``[N]``."""
        parts = []
        with torch.no_grad():
            for part in torch.arange(len(self.labels)).split(BATCH):

                def right(rows: Tensor, part: Tensor = part) -> Tensor:
                    own = part[rows]
                    x = (self.split.batch(own) if self.images is None else self.images[own]).to(wf.device)
                    logits = wf.logits(wf(x, forget=selection[own].to(wf.device)))
                    return logits.argmax(1).cpu() == self.labels[own]

                parts.append(self.by_shares(len(part), right))
        return torch.cat(parts)
