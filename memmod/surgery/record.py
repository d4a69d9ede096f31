"""What surgery does to a model, written down as it is done, so that it can be told and undone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from memmod.surgery.replace import replace_module


@dataclass(frozen=True)
class Row:
    """What became of one layer: `action` is "gated", "gated behind", "folded", "fused", "replaced" or "skipped"."""

    name: str
    kind: str
    action: str
    reason: str = ""


@dataclass
class Surgery:
    """A modulated copy under way: the model, what was done, and what undoes it.

    `weights` counts the values of the weights that could be gated, `gated_weights` those that are (`Coverage`).
    """

    model: nn.Module
    rows: list[Row] = field(default_factory=list)
    originals: list[tuple[str, nn.Module]] = field(default_factory=list)
    attributes: list[tuple[str, str, Any]] = field(default_factory=list)
    gated_weights: int = 0
    weights: int = 0

    def replace(self, name: str, new: nn.Module) -> None:
        """Put `new` in the place of module `name`, wherever the model refers to it, and remember what stood there."""
        old = self.model.get_submodule(name)
        self.originals.append((name, old))
        replace_module(self.model, old, new)

    def undo(self, count: int) -> None:
        """Take back the newest `count` replacements."""
        for _ in range(count):
            name, old = self.originals.pop()
            replace_module(self.model, self.model.get_submodule(name), old)

    def set_attribute(self, name: str, attribute: str, value: Any) -> None:
        """Set an attribute of module `name`, and remember what it was."""
        module = self.model.get_submodule(name)
        self.attributes.append((name, attribute, getattr(module, attribute)))
        setattr(module, attribute, value)

    def note(self, name: str, module: nn.Module, action: str, reason: str = "") -> None:
        """Add a row to the summary."""
        self.rows.append(Row(name, type(module).__name__, action, reason))
