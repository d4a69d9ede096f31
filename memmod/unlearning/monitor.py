"""What the trainer sees of a round: evaluations, which of them is best, and when to warn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

# A fall of the retain accuracy by more than 3 points is over-unlearning.
OVER_UNLEARNING = 0.03
# A class that keeps more than this is not forgotten when others are.
LAGGING = 0.05


@dataclass(frozen=True)
class Evaluation:
    """One evaluation on the validation split.

    Args:
        step: after how many steps.
        losses: means of total, retain, forget and gates since the previous evaluation; empty at step 0.
        acc_forget: per class, the accuracy on its images with it selected.
        mean_retain: accuracy with another class selected.
    """

    step: int
    losses: dict[str, float]
    acc_forget: tuple[float, ...]
    mean_retain: float

    @property
    def worst_forget(self) -> float:
        return max(self.acc_forget)

    @property
    def worst_class(self) -> int:
        return self.acc_forget.index(self.worst_forget)

    @property
    def mean_forget(self) -> float:
        return sum(self.acc_forget) / len(self.acc_forget)

    def better_than(self, other: Evaluation | None) -> bool:
        """Lower worst forget accuracy, then higher retain accuracy; the later one of equals."""
        if other is None:
            return True
        return (self.worst_forget, -self.mean_retain) <= (other.worst_forget, -other.mean_retain)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self) | {"acc_forget": list(self.acc_forget)}


def find_warnings(evaluation: Evaluation, base_retain: float, class_names: Sequence[str]) -> dict[str, str]:
    """What is wrong with a state, by kind: "over-unlearning", "lagging"; each a sentence that says what to do."""
    found = {}
    fall = base_retain - evaluation.mean_retain
    if fall > OVER_UNLEARNING:
        found["over-unlearning"] = (
            f"over-unlearning at step {evaluation.step}: the accuracy on retained classes is "
            f"{evaluation.mean_retain:.1%}, {100 * fall:.1f} points below the base's {base_retain:.1%}; "
            "lower the forget weight (lambdas) or lr, or train for more steps"
        )
    lagging = [c for c, accuracy in enumerate(evaluation.acc_forget) if accuracy > LAGGING]
    if lagging:
        lagging.sort(key=lambda c: -evaluation.acc_forget[c])
        shown = ", ".join(f"{class_names[c]!r} {evaluation.acc_forget[c]:.1%}" for c in lagging[:5])
        more = f" and {len(lagging) - 5} more" if len(lagging) > 5 else ""
        found["lagging"] = (
            f"lagging at step {evaluation.step}: {len(lagging)} of {len(evaluation.acc_forget)} classes keep more than "
            f"{LAGGING:.0%} accuracy when selected ({shown}{more}); train for more steps, or use an objective in which "
            "no class hides behind the others (masked-distillation)"
        )
    return found
