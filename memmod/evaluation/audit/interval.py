"""Whether a figure could be an oracle's: the interval in which one more oracle's would lie, and the verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass

from memmod.errors import RunError

# Of one more oracle's figures, this share lies inside.
COVERAGE = 0.95

WITHIN, WORSE, BETTER, UNJUDGED = "within", "worse", "better", "not judged"


@dataclass(frozen=True)
class OracleInterval:
    """Figures of networks trained without the class, and where one more such network's would lie.

    Args:
        values: the oracles' figures, at least 2.
        resolution: the smallest difference that the images at hand can show; the interval reaches at least so far
            beyond the mean, and oracles that happen to agree do not make it a point.
    """

    values: tuple[float, ...]
    resolution: float = 0.0

    def __post_init__(self) -> None:
        if len(self.values) < 2:
            raise RunError(f"{len(self.values)} oracle gives no interval: train at least 2, with --seeds 2")

    @property
    def mean(self) -> float:
        """The oracles' mean."""
        return math.fsum(self.values) / len(self.values)

    @property
    def half_width(self) -> float:
        """Of the prediction interval for one more value, t s √(1 + 1/n), Student's t of n - 1 degrees of freedom."""
        from scipy.stats import t

        n = len(self.values)
        variance = math.fsum((value - self.mean) ** 2 for value in self.values) / (n - 1)
        quantile = float(t.ppf((1 + COVERAGE) / 2, n - 1))
        return max(quantile * math.sqrt(variance * (1 + 1 / n)), self.resolution)

    @property
    def bounds(self) -> tuple[float, float]:
        """The lower and the upper end: the mean ∓ half the width."""
        return self.mean - self.half_width, self.mean + self.half_width


@dataclass(frozen=True)
class Verdict:
    """Where a figure lies: `word` is "within", "worse" (it tells more of the class), "better" (less) or "not judged".

    `distance` is how far beyond the interval, in the figure's unit; 0 within.
    """

    word: str
    distance: float = 0.0


def judge(value: float, interval: OracleInterval, knows: str) -> Verdict:
    """Compare a figure with the oracles' interval.

    Args:
        value: the figure.
        knows: "more" where a larger figure tells that more is known of the class, "less" where a smaller one does,
            "either" where any other figure does, "neither" where none does.

    Raises:
        RunError: `knows` is something else.
    """
    if knows not in ("more", "less", "either", "neither"):
        raise RunError(f"knows is {knows!r}; it must be 'more', 'less', 'either' or 'neither'")
    if knows == "neither":
        return Verdict(UNJUDGED)
    if not math.isfinite(value) or not all(map(math.isfinite, interval.values)):
        return Verdict(UNJUDGED)
    low, high = interval.bounds
    # equal figures lie within, whatever the rounding of the mean
    slack = 1e-9 * max(abs(low), abs(high), 1e-30)
    if low - slack <= value <= high + slack:
        return Verdict(WITHIN)
    above = value > high
    worse = knows == "either" or above == (knows == "more")
    return Verdict(WORSE if worse else BETTER, value - high if above else low - value)
