"""One interface for every rival: training state in, an ordinary network that should have forgotten out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from memmod.errors import RunError
from memmod.outputs import logits_of

if TYPE_CHECKING:
    from memmod.data import Split
    from memmod.training import TrainConfig


class Diverged(RunError):
    """A method whose loss or weights are no longer finite; a comparison reports it and goes on."""


@dataclass(frozen=True)
class ForgetTask:
    """What a method starts from.

    Args:
        network: the original classifier, in eval mode; the method's own copy, which it may change and return.
        retain: training images of the classes that stay.
        forget: training images of the classes to forget.
        classes: these classes.
        num_classes: C, the width of the logits ``[B, C]``.
        training: how the network was trained: its augmentation, its batch size.
        seed: of every draw.
        logits_path: where the logits are in what the network returns, as `ModulateConfig.logits` says.
        on_step: called with (step, steps) now and then.
    """

    network: nn.Module
    retain: Split
    forget: Split
    classes: tuple[int, ...]
    num_classes: int
    training: TrainConfig
    seed: int = 0
    logits_path: str | None = None
    on_step: Callable[[int, int], None] = field(default=lambda _step, _steps: None)

    @property
    def device(self) -> torch.device:
        """The network's."""
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    def logits(self, network: nn.Module, x: Tensor) -> Tensor:
        """Logits ``[B, C]`` of a network of the base's architecture."""
        return logits_of(network(x), self.logits_path)

    def is_forgotten(self) -> Tensor:
        """bool ``[C]``: which classes are to be forgotten.

        Raises:
            RunError: none or all of them, or one that is out of range.
        """
        named = set(self.classes)
        if not named or not named < set(range(self.num_classes)):
            raise RunError(
                f"classes is {self.classes}: name some of the classes 0 to {self.num_classes - 1} to forget, and leave "
                "at least one"
            )
        forgotten = torch.zeros(self.num_classes, dtype=torch.bool)
        forgotten[list(named)] = True
        return forgotten


@dataclass(frozen=True)
class Method:
    """A named way to forget.

    Args:
        name: as tables and the command line call it.
        paper: authors, title, identifier.
        config: a frozen dataclass whose defaults are the paper's.
        run: turns a task into an ordinary network in eval mode, of the same architecture unless `wraps` says so.
        grid: the values that its paper searched, by field of `config`; empty where there is nothing to tune.
        uses_retained: whether it needs retained images.
        is_control: a trivial rival, which forgets nothing or only at the output.
        wraps: whether it returns a module around the network instead of one of the same architecture.
        stored: bytes to keep for these classes beside the base, of (task, config, what `run` returned); default: the
            whole network.

    Raises:
        RunError: a grid over a field that `config` has not.
    """

    name: str
    paper: str
    config: type
    run: Callable[[ForgetTask, Any], nn.Module]
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    uses_retained: bool = True
    is_control: bool = False
    wraps: bool = False
    stored: Callable[[ForgetTask, Any, nn.Module], int] = field(default=lambda _task, _config, net: state_bytes(net))

    def __post_init__(self) -> None:
        unknown = set(self.grid) - {f.name for f in fields(self.config)}
        if unknown:
            raise RunError(f"the grid of {self.name} varies {', '.join(sorted(unknown))}, which its settings have not")

    def settings(self) -> list[Any]:
        """Every combination of the grid's values as a config; the defaults alone where there is nothing to tune."""
        return [self.config(**dict(zip(self.grid, values, strict=True))) for values in product(*self.grid.values())]


def state_bytes(network: nn.Module) -> int:
    """Bytes of a network's state dict."""
    return sum(t.numel() * t.element_size() for t in network.state_dict().values() if isinstance(t, Tensor))


def finite(loss: Tensor, method: str, step: int, steps: int) -> Tensor:
    """The loss, where it is finite.

    Raises:
        Diverged: it is not.
    """
    value = loss.item()
    if not math.isfinite(value):
        raise Diverged(f"{method} diverged: its loss is {value} at step {step} of {steps}; lower its learning rate")
    return loss


def check_weights(network: nn.Module, method: str) -> nn.Module:
    """The network, where every weight is finite.

    Raises:
        Diverged: one is not; it is named.
    """
    for name, value in network.state_dict().items():
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            raise Diverged(f"{method} diverged: {name} holds values that are not finite; lower its learning rate")
    return network
