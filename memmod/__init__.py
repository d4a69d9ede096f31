"""memmod: class-indexed memory modulation inside linear and conv layers, and the unlearning built on it."""

from memmod.model import ModulateConfig, ModulatedModel, modulate
from memmod.nn import ModulatedConv2d, ModulatedLinear, ModulatedMultiheadAttention, ModulatedOutput
from memmod.ops.dispatch import get_backend, set_backend

__version__ = "0.1.0"

__all__ = [
    "ModulateConfig",
    "ModulatedConv2d",
    "ModulatedLinear",
    "ModulatedModel",
    "ModulatedMultiheadAttention",
    "ModulatedOutput",
    "get_backend",
    "modulate",
    "set_backend",
]
