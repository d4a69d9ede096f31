"""Unlearning: objectives, label expansion, and the trainer of one round in which every class is unlearned."""

from memmod.unlearning.objectives import objective_names
from memmod.unlearning.presets import PRESETS, UnlearnConfig, preset
from memmod.unlearning.progress import Progress
from memmod.unlearning.trainer import Trainer, UnlearnResult

__all__ = ["PRESETS", "Progress", "Trainer", "UnlearnConfig", "UnlearnResult", "objective_names", "preset"]
