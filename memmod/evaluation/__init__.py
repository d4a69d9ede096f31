"""How well classes are forgotten: accuracies, controls, and the scorecard that holds them."""

from memmod.evaluation.accuracy import Accuracies, evaluate, random_sets, single_classes
from memmod.evaluation.batchnorm_recalibration import restandardised
from memmod.evaluation.controls import random_gates, without_gates
from memmod.evaluation.sampled import SampledAccuracies, SampledSplit
from memmod.evaluation.scorecard import Scorecard, forward_passes, scorecard

__all__ = [
    "Accuracies",
    "SampledAccuracies",
    "SampledSplit",
    "Scorecard",
    "evaluate",
    "forward_passes",
    "random_gates",
    "random_sets",
    "restandardised",
    "scorecard",
    "single_classes",
    "without_gates",
]
