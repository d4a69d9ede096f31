"""Figures that compare an unlearned network with others, each by the formula of its paper."""

from memmod.evaluation.metrics.activation_distance import (
    mean_activation_distance,
    rms_activation_distance,
)
from memmod.evaluation.metrics.anamnesis import anamnesis_index
from memmod.evaluation.metrics.cka import linear_cka
from memmod.evaluation.metrics.divergence import js_divergence, total_variation
from memmod.evaluation.metrics.zrf import zrf, zrf_as_in_published_code

__all__ = [
    "anamnesis_index",
    "js_divergence",
    "linear_cka",
    "mean_activation_distance",
    "rms_activation_distance",
    "total_variation",
    "zrf",
    "zrf_as_in_published_code",
]
