"""Drop-in layers that forget classes by sample."""

from memmod.nn.attention import ModulatedMultiheadAttention
from memmod.nn.conv import ModulatedConv2d
from memmod.nn.linear import ModulatedLinear
from memmod.nn.output import ModulatedOutput

__all__ = ["ModulatedConv2d", "ModulatedLinear", "ModulatedMultiheadAttention", "ModulatedOutput"]
