"""Other methods of unlearning, one a file, behind the one interface of `method`."""

from memmod.errors import RunError
from memmod.unlearning.baselines import (
    boundary_shrink,
    controls,
    damp,
    fine_tuning,
    low_rank,
    neg_grad,
    random_labels,
    salun,
    scrub,
    ssd,
    svd_projection,
)
from memmod.unlearning.baselines.method import Diverged, ForgetTask, Method
from memmod.unlearning.baselines.run import Outcome, unlearn_with
from memmod.unlearning.baselines.tuning import Row, Tuned, tune

__all__ = [
    "METHODS",
    "Diverged",
    "ForgetTask",
    "Method",
    "Outcome",
    "Row",
    "Tuned",
    "get_method",
    "tune",
    "unlearn_with",
]

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        controls.NOTHING,
        controls.LOGIT_MASK,
        controls.BIAS_SHIFT,
        fine_tuning.METHOD,
        neg_grad.METHOD,
        neg_grad.METHOD_PLUS,
        random_labels.METHOD,
        salun.METHOD,
        scrub.METHOD,
        boundary_shrink.METHOD,
        ssd.METHOD,
        svd_projection.METHOD,
        damp.METHOD,
        low_rank.METHOD,
    )
}
"""Every method by its name, the trivial controls first."""


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        RunError: there is none.
    """
    if name not in METHODS:
        raise RunError(f"unknown method {name!r}; it must be one of {', '.join(map(repr, METHODS))}")
    return METHODS[name]
