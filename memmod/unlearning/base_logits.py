"""The frozen network's logits of the training images: computed once, or per step where that is less work."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memmod.data import batches_of
from memmod.distributed.processes import by_shares
from memmod.evaluation.accuracy import BATCH

if TYPE_CHECKING:
    from memmod.data import Split
    from memmod.model import ModulatedModel


class FrozenLogits:
    """Logits ``[n, C]`` of the network with nothing selected; all processes of a group make one together.

    Args:
        draws: how many images the whole round will draw. A split of no more images is run once, in advance; of a larger
            one each step runs the images it draws, so that a short round never decodes a whole large data set.
    """

    def __init__(self, wf: ModulatedModel, split: Split, draws: int) -> None:
        self.wf = wf
        self.cache: Tensor | None = None
        if len(split) <= draws:
            parts = batches_of(torch.arange(len(split)), BATCH)
            self.cache = torch.cat([by_shares(len(part), partial(self._run_images, split, part)) for part in parts])

    def of(self, images: Tensor, x: Tensor) -> Tensor:
        """Logits of the images numbered ``[n]``, whose pixels are x ``[n, ...]``."""
        return self._run(x) if self.cache is None else self.cache[images.to(self.cache.device)]

    def _run_images(self, split: Split, part: Tensor, rows: Tensor) -> Tensor:
        return self._run(split.batch(part[rows]).to(self.wf.device))

    def _run(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.wf.logits(self.wf(x, forget=-1))
