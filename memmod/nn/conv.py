"""A 2d convolution that forgets classes by sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from memmod import functional
from memmod.nn.leaf import call_node
from memmod.nn.linear import _share
from memmod.nn.modulated import INITIAL_MEMORY, Modulated


class ModulatedConv2d(Modulated, nn.Conv2d):
    """Applies ``y = s_out ⊙ (conv(s_in ⊙ x, W) + b)``, with gates ``s = σ(memory)`` of each sample's selected classes.

    Drop-in for `torch.nn.Conv2d`: the same parameters and state-dict keys, plus `memory`
    ``[num_classes, out_channels]`` and/or `input_memory` ``[num_classes, in_channels]``. With nothing
    selected it is the plain layer. Implements the filtering of arXiv 2304.02049.

    `in_channels`, `out_channels`, `kernel_size`, `stride`, `padding`, `dilation`, `groups`, `bias`, `padding_mode`,
    `device` and `dtype` are as in `torch.nn.Conv2d`; `num_classes`, `granularity`, `gate`, `gate_bias`, `keep` and
    `init` as in `ModulatedLinear`.

    Shapes:
        x ``[k·B, in_channels, H, W]``, the k rows of a sample contiguous; index int64 ``[B]`` or ``[B, S]``, -1 =
        nothing (``[1]`` or ``[1, S]``: the whole batch); output ``[k·B, out_channels, H', W']``.

    Raises:
        SelectionError: an index of a wrong dtype, shape, device or range, or rows that are not a multiple of B.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        num_classes: int,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        granularity: str = "unit",
        gate: str = "sigmoid",
        gate_bias: bool = True,
        keep: str = "output",
        init: float = INITIAL_MEMORY,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            device=device,
            dtype=dtype,
        )
        self._init_modulation(
            out_channels, in_channels, num_classes, granularity, gate, gate_bias, keep, init, self.weight.device
        )
        self.normalised = False

    @classmethod
    def from_conv2d(cls, conv: nn.Conv2d, num_classes: int, **options: Any) -> ModulatedConv2d:
        """A modulated layer that shares the weight and bias of `conv`; `options` as in the constructor."""
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            num_classes,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            device="meta",
            **options,
        )
        return _share(layer, conv)

    def set_norm(self, norm: nn.BatchNorm2d) -> None:
        """Remember `norm`, which was folded into this layer, so that batch statistics can act in its place.

        Folding scaled each unit by γ/√(v + ε). Scaled back, it is ± the unit that BatchNorm saw but for a constant that
        the mean takes away; the sign went into |γ|. A unit with γ = 0 is constant, and comes out as β.
        """
        gamma = norm.weight.detach() if norm.weight is not None else torch.ones_like(norm.running_var)
        beta = norm.bias.detach() if norm.bias is not None else torch.zeros_like(norm.running_var)
        unfold = (norm.running_var.double() + norm.eps).sqrt() / gamma.double().abs()
        unfold = torch.where(unfold.isfinite(), unfold, 1.0)
        for name, value in (("norm_scale", gamma.abs()), ("norm_shift", beta), ("norm_unfold", unfold)):
            self.register_buffer(name, value.to(norm.running_var.dtype).clone(), persistent=False)
        self.norm_eps = norm.eps
        self.normalised = True

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, index: Tensor | None = None) -> Tensor: ...

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        if isinstance(x, Proxy):
            return call_node(self, (x,), {"index": index})
        memory, input_memory, index = self.modulation(index)
        if self.normalised and self.state is not None and self.state.batch_statistics:
            return self._standardised(x, memory, input_memory, index)
        return self._convolve(x, self.weight, self.bias, memory, input_memory, index, self.activation)

    def _convolve(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        memory: Tensor | None,
        input_memory: Tensor | None,
        index: Tensor | None,
        activation: str | None,
    ) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return functional.modulated_conv2d(
            x,
            weight,
            bias,
            memory,
            index,
            input_memory=input_memory,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            gate=self.gate,
            gate_bias=self.gate_bias,
            keep=self.keep,
            activation=activation,
        )

    def _standardised(
        self, x: Tensor, memory: Tensor | None, input_memory: Tensor | None, index: Tensor | None
    ) -> Tensor:
        """The folded BatchNorm in training mode, then the gate; no running statistics are kept."""
        unfold = self.norm_unfold
        weight, bias = self.weight * unfold[:, None, None, None], self.bias * unfold
        z = self._convolve(x, weight, bias, None, input_memory, index, None)
        if z.numel() == z.shape[1]:
            # One value per channel has no variance: the layer stays as it is.
            return self._convolve(x, self.weight, self.bias, memory, input_memory, index, self.activation)
        shift = self.norm_shift if self.gate_bias else None
        y = F.batch_norm(z, None, None, self.norm_scale, shift, training=True, eps=self.norm_eps)
        keep = self.keep if self.gate_bias else "gated"
        if memory is not None:
            y = functional.modulate_output(y, memory, index, dim=1, gate=self.gate, keep=keep)
        y = y if self.gate_bias else y + self.norm_shift[:, None, None]
        return y if self.activation is None else F.relu(y)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self._modulation_repr()}"
