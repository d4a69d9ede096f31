"""A 2d convolution that forgets classes by sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memmod import functional
from memmod.nn._modulated import INITIAL_MEMORY, Modulated
from memmod.nn.linear import _share


class ModulatedConv2d(Modulated, nn.Conv2d):
    """Applies ``y = s_out ⊙ (conv(s_in ⊙ x, W) + b)``, with gates ``s = σ(memory)`` of each sample's selected classes.

    Drop-in for `torch.nn.Conv2d`: the same parameters and state-dict keys, plus `memory`
    ``[num_classes, out_channels]`` and/or `input_memory` ``[num_classes, in_channels]``. With nothing
    selected it is the plain layer. Implements the filtering of arXiv 2304.02049.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            in `torch.nn.Conv2d`.
        num_classes, granularity, gate, gate_bias, keep, init: as in `ModulatedLinear`.

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
    def from_conv2d(cls, conv: nn.Conv2d, num_classes: int, **options) -> ModulatedConv2d:
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
        """Remember the BatchNorm that was folded into this layer, so that `standardise` can act in its place.

        The folded output u is (γ/√(v + ε))·(z − m) + β of the original z, so standardising u with
        ε′ = ε·γ²/(v + ε) equals standardising z with ε.
        """
        gamma = norm.weight if norm.weight is not None else torch.ones_like(norm.running_var)
        beta = norm.bias if norm.bias is not None else torch.zeros_like(norm.running_var)
        scaled_eps = norm.eps * gamma.double().square() / (norm.running_var.double() + norm.eps)
        for name, value in (("norm_scale", gamma.abs()), ("norm_shift", beta), ("norm_eps", scaled_eps)):
            self.register_buffer(name, value.detach().to(norm.running_var.dtype).clone(), persistent=False)
        self.normalised = True

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        memory, input_memory, index = self.modulation(index)
        if self.normalised and self.state is not None and self.state.batch_statistics:
            z = self._convolve(x, None, input_memory, index)
            return self._modulate_standardised(z, memory, index)
        return self._convolve(x, memory, input_memory, index)

    def _convolve(self, x: Tensor, memory: Tensor | None, input_memory: Tensor | None, index: Tensor | None) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return functional.modulated_conv2d(
            x,
            self.weight,
            self.bias,
            memory,
            index if memory is not None or input_memory is not None else None,
            input_memory=input_memory,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            gate=self.gate,
            gate_bias=self.gate_bias,
            keep=self.keep,
        )

    def _modulate_standardised(self, u: Tensor, memory: Tensor | None, index: Tensor | None) -> Tensor:
        """BatchNorm in training mode on the folded output u ``[N, O, H, W]``, then the gate; no statistics are kept."""
        if u.numel() <= u.shape[1]:
            # One value per channel has no variance.
            scale, shift = torch.ones_like(self.norm_scale), torch.zeros_like(self.norm_shift)
        else:
            var, mean = torch.var_mean(u.float(), dim=(0, 2, 3), correction=0)
            # γ = 0 makes u constant, so ε′ and the variance are both 0: its output is β.
            scale = self.norm_scale * torch.where(self.norm_scale == 0, 1.0, var + self.norm_eps).rsqrt()
            shift = self.norm_shift - mean * scale
        scale, shift = (v.to(u.dtype)[:, None, None] for v in (scale, shift))
        if memory is None or index is None:
            return u * scale + shift
        if self.gate_bias:
            return functional.modulate_output(u * scale + shift, memory, index, dim=1, gate=self.gate, keep=self.keep)
        return functional.modulate_output(u * scale, memory, index, dim=1, gate=self.gate, keep="gated") + shift

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self._modulation_repr()}"
