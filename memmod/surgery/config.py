"""How a model is modulated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from memmod.errors import ModelError
from memmod.files.strict_json import Origin, check
from memmod.nn.modulated import GATES, GRANULARITIES, INITIAL_MEMORY


@dataclass(frozen=True)
class ModulateConfig:
    """How a model is modulated. Frozen; it travels in the memory file.

    Args:
        granularity: what a memory entry gates: "unit" (default), "input", "unit+input".
        gate: "sigmoid" (default), "identity", or "hard" (inference only).
        gate_bias: gate the bias with its unit, so that a closed unit outputs 0.
        filter: ``(name, module) → bool``; layers for which it is False stay as they are. Not stored: a memory file
            names the layers instead.
        skip: name patterns (as in the shell: ``"stem.*"``) of layers that stay as they are.
        fold: fold BatchNorm into the convolution in front of it and gate the folded unit.
        fuse: have a layer apply the ReLU that follows it, which is faster. False keeps every ReLU a module that
            computes: for what hooks into activations (captum's DeepLift, guided backpropagation).
        behind: put every gate behind its layer, or behind the norm that follows it, instead of inside: the layers stay
            ordinary modules, which other libraries can wrap or exchange (peft's adapters, say), with the gate over what
            they make of them. Slower; nothing is folded or fused. Replaced attention keeps its own projections.
        init: initial value of every memory entry.
        logits: where the logits are in what the model returns: a key, an index or a field ("logits", 1), or a path of
            them ("out.logits"); None: `modulate()` finds them, and stores what it found.
        output: as `logits`, for a model without a classifier (embeddings, maps ``[B, ...]``): what gates must change.
            No layer counts as the head, and `num_classes` says how many concepts there are to forget.

    Raises:
        ValueError: an unknown granularity or gate, behind with gate_bias=False, or both logits and output.
        TypeError: logits or output is neither a string nor an int.
    """

    granularity: str = "unit"
    gate: str = "sigmoid"
    gate_bias: bool = True
    filter: Callable[[str, nn.Module], bool] | None = None
    skip: tuple[str, ...] = ()
    fold: bool = True
    fuse: bool = True
    behind: bool = False
    init: float = INITIAL_MEMORY
    logits: str | int | None = None
    output: str | int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("granularity", GRANULARITIES), ("gate", GATES)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")
        if self.behind and not self.gate_bias:
            raise ValueError("behind=True gates what a layer returns, its bias too: leave gate_bias at True")
        for name, path in (("logits", self.logits), ("output", self.output)):
            if path is not None and (isinstance(path, bool) or not isinstance(path, (str, int))):
                raise TypeError(f'{name} is {path!r}; it must be a path such as "logits", 1 or "out.logits"')
            object.__setattr__(self, name, None if path is None else str(path))
        if self.logits is not None and self.output is not None:
            raise ValueError(
                f"logits is {self.logits!r} and output {self.output!r}: give logits for a classifier, output for a "
                "model without one"
            )
        object.__setattr__(self, "skip", tuple(self.skip))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, without the filter."""
        values = asdict(replace(self, filter=None))
        values.pop("filter")
        return values | {"skip": list(self.skip)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModulateConfig:
        """The config of a `to_dict`.

        Raises:
            ModelError: unknown or missing fields, or values of another type.
            ValueError: an unknown granularity or gate.
        """
        # Not needed to run kernels, which some machines do without it.
        from memmod.files.schemas import StoredConfig, as_dict

        unknown = sorted(values.keys() - set(StoredConfig.__struct_fields__))
        if unknown:
            raise ModelError(f"unknown fields of ModulateConfig: {', '.join(unknown)}; this memmod may be too old")
        origin = Origin("the stored ModulateConfig", ModelError, "store it again")
        return cls(**as_dict(check(values, StoredConfig, origin)))

    @property
    def layer_options(self) -> dict[str, Any]:
        """What every modulated layer is made with."""
        return {"granularity": self.granularity, "gate": self.gate, "gate_bias": self.gate_bias, "init": self.init}
