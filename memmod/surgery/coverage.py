"""Which share of a model's weights is gated."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor, nn

logger = logging.getLogger(__name__)


class Coverage:
    """Which share of the linear and conv weights, without the head and what the user left out, is gated."""

    def __init__(self) -> None:
        self.gated = self.total = 0
        self.seen: set[int] = set()

    def count(self, weight: Any, gated: bool) -> None:
        """Add a layer's weight, once where layers share it; vectors (biases) do not count."""
        if isinstance(weight, Tensor) and weight.dim() > 1 and id(weight) not in self.seen:
            self.seen.add(id(weight))
            self.total += weight.numel()
            self.gated += weight.numel() if gated else 0

    def warn(self, model: nn.Module) -> None:
        """Warn where less than half is gated: what the other weights carry cannot be forgotten."""
        if 0 < 2 * self.gated < self.total:
            logger.warning(
                "only %.1f %% of the linear and conv weights of %s are gated, so most of what it learned stays as it "
                "is; summary() gives the reason of each layer",
                100 * self.gated / self.total,
                type(model).__name__,
            )
