"""The arguments of each op by name, in the order of its schema: what fakes take, and every backend's kernels, checks
and policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from torch import Tensor


class ConvOptions(NamedTuple):
    """The geometry of a convolution, as `torch.nn.functional.conv2d` takes it, in pairs."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int


class LinearCall(NamedTuple):
    """`memmod::modulated_linear`."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    memory: Tensor | None
    input_memory: Tensor | None
    index: Tensor
    gate: str
    gate_bias: bool
    keep_gated: bool

    @property
    def conv(self) -> None:
        return None


class ConvCall(NamedTuple):
    """`memmod::modulated_conv2d`."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    memory: Tensor | None
    input_memory: Tensor | None
    index: Tensor
    gate: str
    gate_bias: bool
    keep_gated: bool
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    @property
    def conv(self) -> ConvOptions:
        return ConvOptions(self.stride, self.padding, self.dilation, self.groups)


class LinearGradCall(NamedTuple):
    """`memmod::modulated_linear_backward`; `needs` says which of (x, weight, bias, memory, input_memory)."""

    dy: Tensor
    x_shape: Sequence[int]
    x: Tensor | None
    weight: Tensor | None
    memory: Tensor | None
    input_memory: Tensor | None
    index: Tensor
    saved: Tensor | None
    gate: str
    gate_bias: bool
    needs: Sequence[bool]

    @property
    def conv(self) -> None:
        return None


class ConvGradCall(NamedTuple):
    """`memmod::modulated_conv2d_backward`; `needs` as in `LinearGradCall`."""

    dy: Tensor
    x_shape: Sequence[int]
    x: Tensor | None
    weight: Tensor | None
    memory: Tensor | None
    input_memory: Tensor | None
    index: Tensor
    saved: Tensor | None
    gate: str
    gate_bias: bool
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int
    needs: Sequence[bool]

    @property
    def conv(self) -> ConvOptions:
        return ConvOptions(self.stride, self.padding, self.dilation, self.groups)


class OutputCall(NamedTuple):
    """`memmod::modulate_output`."""

    x: Tensor
    memory: Tensor
    index: Tensor
    dim: int
    gate: str
    keep_gated: bool


class OutputGradCall(NamedTuple):
    """`memmod::modulate_output_backward`; `needs` says which of (x, memory)."""

    dy: Tensor
    saved: Tensor | None
    memory: Tensor
    index: Tensor
    dim: int
    gate: str
    needs: Sequence[bool]


LayerCall: TypeAlias = LinearCall | ConvCall
LayerGradCall: TypeAlias = LinearGradCall | ConvGradCall

CALLS: dict[str, type] = {
    "modulated_linear": LinearCall,
    "modulated_linear_backward": LinearGradCall,
    "modulated_conv2d": ConvCall,
    "modulated_conv2d_backward": ConvGradCall,
    "modulate_output": OutputCall,
    "modulate_output_backward": OutputGradCall,
}
