"""The ops `torch.ops.memmod.*`: importing this defines them; compiled kernels load at the first call."""

from memmod.ops import flop_formulas, modulate_output, modulated_conv2d, modulated_linear
from memmod.ops.backends import reference
from memmod.ops.dispatch import BACKENDS, availability, get_backend, set_backend

flop_formulas.register()

__all__ = [
    "BACKENDS",
    "availability",
    "get_backend",
    "modulate_output",
    "modulated_conv2d",
    "modulated_linear",
    "reference",
    "set_backend",
]
