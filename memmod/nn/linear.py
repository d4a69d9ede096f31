"""A linear layer that forgets classes by sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from memmod import functional
from memmod.nn.leaf import call_node
from memmod.nn.modulated import INITIAL_MEMORY, Modulated


class ModulatedLinear(Modulated, nn.Linear):
    """Applies ``y = s_out ⊙ ((s_in ⊙ x) Wᵀ + b)``, with gates ``s = σ(memory)`` of each sample's selected classes.

    Drop-in for `torch.nn.Linear`: the same parameters and state-dict keys, plus `memory`
    ``[num_classes, out_features]`` and/or `input_memory` ``[num_classes, in_features]``. With nothing
    selected it is the plain layer. Several selected classes multiply their gates. Implements the
    filtering of arXiv 2304.02049. `in_features`, `out_features`, `bias`, `device` and `dtype` are as in
    `torch.nn.Linear`.

    Args:
        num_classes: rows of the memory: the classes that can be forgotten.
        granularity: what a memory entry gates: "unit" (an output feature), "input" (an input feature), "unit+input".
        gate: "sigmoid", "identity" (the memory is the multiplier), or "hard" (memory > 0; inference only).
        gate_bias: gate the bias with the unit, so that a closed unit outputs 0; False gates the weights only.
        keep: what backward keeps: "output" (the layer's own output, free) or "gated" (a copy, for outputs that the
            next layer overwrites in place).
        init: the memory's initial value.

    Shapes:
        x ``[k·B, ..., in_features]``, the k rows of a sample contiguous; index int64 ``[B]`` or ``[B, S]``, -1 =
        nothing (``[1]`` or ``[1, S]``: one selection for the whole batch); output ``[k·B, ..., out_features]``.

    Raises:
        SelectionError: an index of a wrong dtype, shape, device or range, or rows that are not a multiple of B.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_classes: int,
        bias: bool = True,
        granularity: str = "unit",
        gate: str = "sigmoid",
        gate_bias: bool = True,
        keep: str = "output",
        init: float = INITIAL_MEMORY,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self._init_modulation(
            out_features, in_features, num_classes, granularity, gate, gate_bias, keep, init, self.weight.device
        )

    @classmethod
    def from_linear(cls, linear: nn.Linear, num_classes: int, **options: Any) -> ModulatedLinear:
        """A modulated layer that shares the weight and bias of `linear`; `options` as in the constructor."""
        layer = cls(
            linear.in_features,
            linear.out_features,
            num_classes,
            bias=linear.bias is not None,
            device="meta",
            **options,
        )
        return _share(layer, linear)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, index: Tensor | None = None) -> Tensor: ...

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        if isinstance(x, Proxy):
            return call_node(self, (x,), {"index": index})
        memory, input_memory, index = self.modulation(index)
        return functional.modulated_linear(
            x,
            self.weight,
            self.bias,
            memory,
            index,
            input_memory=input_memory,
            gate=self.gate,
            gate_bias=self.gate_bias,
            keep=self.keep,
            activation=self.activation,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self._modulation_repr()}"


def _share(layer: Modulated, source: nn.Module) -> Modulated:
    """Give a layer made on the meta device the parameters of `source` (shared) and real memories beside them."""
    layer.weight = source.weight
    layer.bias = source.bias
    for name, memory in layer.memories():
        setattr(layer, name, nn.Parameter(torch.empty_like(memory, device=source.weight.device)))
    layer.reset_memory()
    layer.train(source.training)
    return layer
