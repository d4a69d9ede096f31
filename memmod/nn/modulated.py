"""What every modulated layer shares: its memories, their dtype, and where its selection comes from."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from memmod.errors import ModelError
from memmod.run_state import RunState

if TYPE_CHECKING:
    from typing_extensions import Self

GRANULARITIES = ("unit", "input", "unit+input")
GATES = ("sigmoid", "identity", "hard")
KEEPS = ("output", "gated")

INITIAL_MEMORY = 2.0


class Modulation(NamedTuple):
    """The memories and the selection of one call: `memory` [C, out], `input_memory` [C, in], `index` [B] or [B, S]."""

    memory: Tensor | None
    input_memory: Tensor | None
    index: Tensor | None


_NOTHING = Modulation(None, None, None)


def _wide(memory: Tensor | None) -> Tensor | None:
    return memory.float() if memory is not None and memory.dtype.itemsize < 4 else memory


class Modulated(nn.Module):
    """Mixin of the modulated layers.

    A memory is fp32 whatever the layer's own parameters become (`.half()`, `.to(torch.bfloat16)`): small steps of
    training are lost below that. Only `.double()` widens it.
    """

    memory: nn.Parameter | None
    input_memory: nn.Parameter | None

    def _init_modulation(
        self,
        units: int,
        inputs: int,
        num_classes: int,
        granularity: str,
        gate: str,
        gate_bias: bool,
        keep: str,
        init: float,
        device: torch.device | str | None,
    ) -> None:
        _one_of("granularity", granularity, GRANULARITIES)
        _one_of("gate", gate, GATES)
        _one_of("keep", keep, KEEPS)
        if not isinstance(num_classes, Integral):
            raise TypeError(
                f"num_classes is {num_classes!r}; it must be an int. A library that makes layers of the type that it "
                "finds, as peft does for its adapters, needs a model whose layers stay ordinary: "
                "modulate(..., config=ModulateConfig(behind=True))"
            )
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; a memory has one row per class, so at least 1 is needed")
        self.num_classes = num_classes
        self.granularity = granularity
        self.gate = gate
        self.gate_bias = gate_bias
        self.keep = keep
        self.init = init
        # "relu" where the layer applies the ReLU behind it too: modulate() fuses them.
        self.activation: str | None = None
        self.state: RunState | None = None
        for name, width, has in (
            ("memory", units, granularity != "input"),
            ("input_memory", inputs, granularity != "unit"),
        ):
            value = torch.full((num_classes, width), float(init), dtype=torch.float32, device=device) if has else None
            self.register_parameter(name, nn.Parameter(value) if has else None)

    def reset_memory(self) -> None:
        """Set every memory entry to `init` again (σ(2) = 0.88: open, with a gradient)."""
        with torch.no_grad():
            for _, memory in self.memories():
                memory.fill_(self.init)

    def memories(self) -> list[tuple[str, nn.Parameter]]:
        """The memories this layer has: ("memory", [C, out]) and/or ("input_memory", [C, in])."""
        pairs = (("memory", self.memory), ("input_memory", self.input_memory))
        return [(name, memory) for name, memory in pairs if memory is not None]

    def modulation(self, index: Tensor | None) -> Modulation:
        """The memories and selection of this call: `index` where given, else the model's selection, else nothing.

        The memories are in fp32 or fp64, whatever mixed precision made of them for this call (FSDP's casts every
        parameter). A model's layer has none where nothing is selected: the model sees to their gradients.
        """
        state = self.state
        if state is not None:
            if state.probe is not None:
                return state.probe(self, index)
            own = index
            index = state.index if index is None else index
            if index is None:
                return _NOTHING
        # Read once: an attribute that is a parameter costs half a microsecond.
        memory, input_memory = self.memory, self.input_memory
        if state is not None and own is None:
            device = (input_memory if memory is None else memory).device
            if index.device != device:
                # Layers of one model may be on several devices.
                index = index.to(device)
        return Modulation(_wide(memory), _wide(input_memory), index)

    def __prepare_scriptable__(self) -> Modulated:
        raise ModelError(
            f"torch.jit.script cannot compile {type(self).__name__}, whose selection TorchScript does not know: script "
            "what wf.bake(...) returns, or write a program with memmod.export.program, whose input is the selection"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = {id(t) for _, m in self.memories() for t in (m, m.grad) if t is not None}

        def keep_wide(t: Tensor) -> Tensor:
            out = fn(t)
            if id(t) in kept and out.dtype not in (torch.float32, torch.float64):
                return t.to(out.device) if t.device != torch.device("meta") else torch.empty_like(t, device=out.device)
            return out

        return super()._apply(keep_wide, recurse)

    def _modulation_repr(self) -> str:
        text = f"num_classes={self.num_classes}, granularity={self.granularity!r}, gate={self.gate!r}"
        if not self.gate_bias:
            text += ", gate_bias=False"
        if self.keep != "output":
            text += f", keep={self.keep!r}"
        if self.activation is not None:
            text += f", activation={self.activation!r}"
        return text


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")
