"""A gate behind any layer: for layers whose forward is their own, and for norms that cannot be folded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from memmod import functional
from memmod.nn.leaf import call_node
from memmod.nn.modulated import INITIAL_MEMORY, Modulated


class ModulatedOutput(Modulated):
    """Gates the units of a tensor by sample: ``y = s ⊙ inner(x)`` along `dim`.

    `granularity`, `gate`, `keep` and `init` are as in `ModulatedLinear`.

    Args:
        num_features: units: the size of the output along `dim`.
        num_classes: rows of the memory.
        inner: the layer to gate behind; None gates the input itself. Its attributes stay reachable through this module.
        dim: the channel dimension of the output (1 for ``[B, C, H, W]``, -1 for ``[B, ..., C]``).
        in_features: input channels of `inner`, needed where the granularity has an input memory.

    Shapes:
        output of inner ``[k·B, ...]``; index int64 ``[B]`` or ``[B, S]``, -1 = nothing; the output keeps its shape.

    Raises:
        SelectionError: an index of a wrong dtype, shape, device or range, or rows that are not a multiple of B.
        ValueError: an input memory is asked for, and `in_features` is not given.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        inner: nn.Module | None = None,
        dim: int = 1,
        in_features: int = 0,
        granularity: str = "unit",
        gate: str = "sigmoid",
        keep: str = "output",
        init: float = INITIAL_MEMORY,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if granularity != "unit" and in_features < 1:
            raise ValueError(f"granularity is {granularity!r}, so in_features must say how many inputs to gate")
        self.num_features = num_features
        self.dim = dim
        self.inner = inner
        self._init_modulation(
            num_features, in_features, num_classes, granularity, gate, True, keep, init, device or _device_of(inner)
        )

    @classmethod
    def from_module(cls, module: nn.Module, num_features: int, num_classes: int, **options: Any) -> ModulatedOutput:
        """A gate behind `module`, whose output has `num_features` units; `options` as in the constructor."""
        layer = cls(num_features, num_classes, inner=module, **options)
        layer.train(module.training)
        return layer

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            inner = self.__dict__.get("_modules", {}).get("inner")
            # Protocols (__deepcopy__, __reduce__) are this module's own, never those of what it wraps; and by this name
            # peft tells an adapter, which it takes out again, from what is around it.
            if inner is None or name.startswith("__") or name == "base_layer":
                raise
            return getattr(inner, name)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, index: Tensor | None = None) -> Tensor: ...

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        if isinstance(x, Proxy):
            return call_node(self, (x,), {"index": index})
        memory, input_memory, index = self.modulation(index)
        if input_memory is not None:
            x = functional.modulate_output(x, input_memory, index, dim=self.dim, gate=self.gate, keep="gated")
        if self.inner is not None:
            x = self.inner(x)
        if memory is None:
            return x
        return functional.modulate_output(x, memory, index, dim=self.dim, gate=self.gate, keep=self.keep)

    def extra_repr(self) -> str:
        return f"{self.num_features}, dim={self.dim}, {self._modulation_repr()}"


def _device_of(module: nn.Module | None) -> torch.device | None:
    return next((p.device for p in module.parameters()), None) if module is not None else None
