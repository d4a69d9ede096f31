"""Which images a step sees: forget samples from every class alike, retain samples as the data come."""

from __future__ import annotations

import torch
from torch import Tensor


class Sampler:
    """Draws image numbers by class, with replacement; all of its state is the generator's.

    Args:
        labels: int64 ``[N]``; every class has at least one image.
        num_classes: C.
    """

    def __init__(self, labels: Tensor, num_classes: int) -> None:
        self.by_class = labels.argsort(stable=True)
        self.counts = torch.bincount(labels, minlength=num_classes)
        self.starts = self.counts.cumsum(0) - self.counts

    def __len__(self) -> int:
        return len(self.by_class)

    def mixed(self, size: int, generator: torch.Generator) -> Tensor:
        """int64 ``[size]``: the first half of classes drawn uniformly, lest a rare one lags; the rest of all images."""
        classes = torch.randint(len(self.counts), (size // 2,), generator=generator)
        rest = torch.randint(len(self), (size - size // 2,), generator=generator)
        return torch.cat((self._of(classes, generator), rest))

    def one_class(self, forgotten: int, kept: int, generator: torch.Generator) -> tuple[int, Tensor]:
        """(c, int64 ``[forgotten + kept]``): images of one random class c first, then images of any other class."""
        c = int(torch.randint(len(self.counts), (), generator=generator))
        own = self._of(torch.full((forgotten,), c), generator)
        start, count = self.starts[c], self.counts[c]
        others = torch.randint(len(self) - int(count), (kept,), generator=generator)
        return c, torch.cat((own, self.by_class[others + count * (others >= start)]))

    def _of(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """One random image of each of the classes ``[n]``."""
        share = torch.rand(classes.shape, generator=generator, dtype=torch.float64)
        return self.by_class[self.starts[classes] + (share * self.counts[classes]).long()]
