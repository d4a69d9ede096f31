"""What a round tells its caller while it runs."""

from __future__ import annotations

from typing import NamedTuple

from memmod.unlearning.monitor import Evaluation
from memmod.unlearning.objectives import Losses


class Progress(NamedTuple):
    """After a step: its losses; after an evaluation: what it found. The other is None."""

    step: int
    steps: int
    losses: Losses | None = None
    evaluation: Evaluation | None = None
