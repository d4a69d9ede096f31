"""What a report shows, as plain values: nothing here knows models or data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Method:
    """Accuracies of one way to forget: `forget[c]` on class c, `retain[c]` on all others, with class c selected."""

    name: str
    forget: Sequence[float]
    retain: Sequence[float]

    @property
    def worst_forget(self) -> float:
        """The highest accuracy that any forgotten class keeps."""
        return max(self.forget)

    @property
    def mean_forget(self) -> float:
        """Mean over the classes."""
        return sum(self.forget) / len(self.forget)

    @property
    def worst_retain(self) -> float:
        """The lowest accuracy on the rest, over the forgotten classes."""
        return min(self.retain)

    @property
    def mean_retain(self) -> float:
        """Mean over the forgotten classes."""
        return sum(self.retain) / len(self.retain)


@dataclass(frozen=True)
class Memory:
    """The gates of one layer: `gates` `[C, K]` in [0, 1], 1 open, 0 closed."""

    layer: str
    gates: np.ndarray


@dataclass(frozen=True)
class LayerNote:
    """One line of a model's summary: what became of a layer, and why."""

    layer: str
    outcome: str
    reason: str = ""


@dataclass(frozen=True)
class Network:
    """One unlearned network. `methods[0]` is memmod's, `methods[1]` the original network, controls follow."""

    name: str
    methods: Sequence[Method]
    memories: Sequence[Memory]
    notes: Sequence[LayerNote]
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """A whole report: networks that forgot the classes `class_names` of one data set."""

    title: str
    data: str
    class_names: Sequence[str]
    networks: Sequence[Network]
    facts: Mapping[str, str] = field(default_factory=dict)
