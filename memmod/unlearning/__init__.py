"""Unlearning: objectives, label expansion, and the trainer of one round in which every class is unlearned."""

from memmod.unlearning.losses import unlearn_losses
from memmod.unlearning.objectives import Batch, Terms, objective, objective_names
from memmod.unlearning.presets import PRESETS, UnlearnConfig, preset
from memmod.unlearning.progress import Progress
from memmod.unlearning.trainer import Trainer, UnlearnResult

__all__ = [
    "PRESETS",
    "Batch",
    "Progress",
    "Terms",
    "Trainer",
    "UnlearnConfig",
    "UnlearnResult",
    "objective",
    "objective_names",
    "preset",
    "unlearn_losses",
]
