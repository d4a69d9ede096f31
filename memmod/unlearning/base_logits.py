"""The frozen network's logits of the training images: computed once, or per step where that is less work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memmod.evaluation.accuracy import BATCH, batches

if TYPE_CHECKING:
    from memmod.data import Split
    from memmod.model import ModulatedModel


class FrozenLogits:
    """Logits ``[n, C]`` of the network with nothing selected.

    Args:
        draws: how many images the whole round will draw. A split of no more images is run once, in advance; of a larger
            one each step runs the images it draws, so that a short round never decodes a whole large data set.
    """

    def __init__(self, wf: ModulatedModel, split: Split, draws: int) -> None:
        self.wf = wf
        self.cache: Tensor | None = None
        if len(split) <= draws:
            self.cache = torch.cat([self._run(x) for x, _ in batches(split, BATCH, wf.device)])

    def of(self, images: Tensor, x: Tensor) -> Tensor:
        """Logits of the images numbered ``[n]``, whose pixels are x ``[n, ...]``."""
        return self._run(x) if self.cache is None else self.cache[images.to(self.cache.device)]

    def _run(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.wf.logits(self.wf(x, forget=-1))
