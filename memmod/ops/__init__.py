"""The ops `torch.ops.memmod.*`: schemas, fakes and gradients; importing this defines them, kernels load at first use."""

from memmod.ops import modulate_output, modulated_conv2d, modulated_linear, reference
from memmod.ops.dispatch import BACKENDS, availability, get_backend, set_backend

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
