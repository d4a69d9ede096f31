"""How far a round of unlearning is, as its checkpoint holds it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from memmod.unlearning.monitor import Evaluation
from memmod.unlearning.objectives import Losses

# Of a checkpoint's tensors.
GROUPS = ("memories", "best", "optimiser", "generators")

_Steps = Annotated[int, msgspec.Meta(ge=0)]
_Means = Annotated[list[float], msgspec.Meta(min_length=len(Losses._fields), max_length=len(Losses._fields))]


class RoundProgress(msgspec.Struct, frozen=True):
    """`Checkpoint.progress` of a round."""

    step: _Steps
    seconds: Annotated[float, msgspec.Meta(ge=0)]
    history: Annotated[list[Evaluation], msgspec.Meta(min_length=1)]
    since_evaluation: list[_Means]
    best: Evaluation
    warned: list[str]
    environment: dict[str, Any]
