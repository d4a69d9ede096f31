"""The anamnesis index: how soon all training images bring the class back, against networks that never saw it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from memmod.evaluation.attacks.attack import Attack, Case, Measure, Subject
from memmod.evaluation.attacks.measuring import accuracy, as_file, tested_count
from memmod.evaluation.attacks.relearning import BATCH, LR, STEPS, batches_for, curve
from memmod.evaluation.metrics import anamnesis_index

NAME = "anamnesis"
# Of the original's accuracy on the class; the paper's α of 10 %.
MARGIN = 0.1


def relearn_steps(curve_of: Sequence[float], steps: Sequence[int], target: float) -> float:
    """Steps until an accuracy is reached, interpolated between those measured; the last step where it never is.

    Args:
        curve_of: accuracy after each of the steps.
        steps: ascending.
    """
    if curve_of[0] >= target:
        return float(steps[0])
    for i in range(1, len(steps)):
        before, after = curve_of[i - 1], curve_of[i]
        if after >= target:
            return steps[i - 1] + (steps[i] - steps[i - 1]) * (target - before) / (after - before)
    return float(steps[-1])


def _steps_of(network: nn.Module, case: Case, target: float) -> float:
    copy = as_file(case, network)
    found = curve(
        case,
        [p.requires_grad_(True) for p in copy.parameters() if p.is_floating_point()],
        LR["all"],
        batches_for(case, "full"),
        lambda x: case.logits(copy, x),
        lambda: accuracy(case, copy, forgotten=True, attack=NAME),
        STEPS,
    )
    return relearn_steps([measure.value for measure in found], STEPS, target)


def run(subject: Subject, case: Case) -> dict[str, Measure]:
    """AIN, "AIN", and the relearn time behind it in optimiser steps on 64 images of all classes each, "steps".

    Relearned is a class whose accuracy is within 10 % of the original's; the oracles' time is their mean. A network
    that does not relearn within 40 steps counts as having taken all of them.

    Raises:
        DataError: too few images.
    """
    with torch.no_grad():
        target = (1 - MARGIN) * accuracy(case, case.original, forgotten=True, attack=NAME).value
    own = _steps_of(subject.network, case, target)
    others = [_steps_of(oracle, case, target) for oracle in case.oracles]
    return {
        "AIN": Measure(anamnesis_index(own, sum(others) / len(others)), 0.1),
        "steps": Measure(own, 1.0),
    }


def _cost(case: Case) -> int:
    per_curve = 3 * BATCH * STEPS[-1] + len(STEPS) * tested_count(case, forgotten=True)
    return (1 + len(case.oracles)) * per_curve + tested_count(case, forgotten=True)


ANAMNESIS = Attack(
    name=NAME,
    level="L1",
    version=1,
    knows={"": "less"},
    run=run,
    cost=_cost,
    source="AIN, Chundawat et al., arXiv 2201.05629",
)
