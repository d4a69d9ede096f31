"""How soon a forgotten class comes back, against a network that never saw it."""

from __future__ import annotations

from memmod.errors import DataError


def anamnesis_index(unlearned_steps: float, retrained_steps: float) -> float:
    """AIN = relearn time of the unlearned network / relearn time of one retrained without the class.

    Chundawat et al., arXiv 2201.05629. Relearn time here is counted in optimiser steps until the accuracy on the
    class is within a margin of the original network's. 1: as fast as a network that never saw it; near 0: it was only
    hidden; above 1: it resists more than ignorance does.

    Args:
        unlearned_steps: of the unlearned network, in steps, at least 0.
        retrained_steps: of the retrained one, in steps, more than 0.

    Raises:
        DataError: a number of steps out of range.
    """
    if not unlearned_steps >= 0 or not retrained_steps > 0:
        raise DataError(
            f"relearn times of {unlearned_steps} and {retrained_steps} steps: the first must be at least 0, the second "
            "more than 0"
        )
    return unlearned_steps / retrained_steps
