"""One interface for every attack: a network under suspicion and what the auditor knows in, named figures out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from memmod.outputs import logits_of

if TYPE_CHECKING:
    from memmod.data import Split
    from memmod.model import ModulatedModel
    from memmod.training import TrainConfig


@dataclass(frozen=True)
class Subject:
    """A network that is asked what it still knows.

    Args:
        name: as the scorecard calls it.
        network: an ordinary classifier in eval mode, x ``[B, ...]`` → logits ``[B, C]`` at the case's `logits_path`;
            attacks work on copies of it.
        wf: the modulated model behind it, for attacks of level L2; None where there is none.
    """

    name: str
    network: nn.Module
    wf: ModulatedModel | None = None


@dataclass(frozen=True)
class Case:
    """What the auditor holds: the class that should be gone, the data, and the networks to compare with.

    Args:
        forget: the classes that should be gone.
        num_classes: C.
        train: training images ``[N, ...]`` of every class.
        test: test images of every class.
        training: how the base was trained.
        original: the network before unlearning.
        oracles: networks trained without the forgotten classes, none of them a subject of the interval it is judged by.
        seed: of every draw.
        quick: fewer images, steps and shadow models, for a first look.
        logits_path: where the logits are in what the networks return.
        fresh: makes a network of the same architecture with random weights from a seed; None where there is no maker.
    """

    forget: tuple[int, ...]
    num_classes: int
    train: Split
    test: Split
    training: TrainConfig
    original: nn.Module
    oracles: tuple[nn.Module, ...]
    seed: int = 0
    quick: bool = False
    logits_path: str | None = None
    fresh: Callable[[int], nn.Module] | None = None

    def logits(self, network: nn.Module, x: Tensor) -> Tensor:
        """Logits ``[B, C]`` of one of the networks."""
        return logits_of(network(x), self.logits_path)

    def is_forgotten(self, labels: Tensor) -> Tensor:
        """bool ``[N]``: which labels ``[N]`` are of the forgotten classes."""
        return torch.isin(labels, torch.tensor(self.forget, device=labels.device))


@dataclass(frozen=True)
class Measure:
    """One figure of an attack.

    Args:
        value: the figure.
        resolution: the smallest difference that the images at hand can show, in the figure's unit: one over the number
            of images behind a share. An oracles' interval is never narrower.
        interval: of a bootstrap over the images, where one was drawn.
    """

    value: float
    resolution: float = 0.0
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Attack:
    """A named way to find what a network still knows.

    Args:
        name: as the scorecard calls it.
        level: what the attacker has: "L0" probabilities of the selected model, "L1" the baked file, from which what
            only wraps the network is taken off first, "L2" the base with its memories.
        version: raised whenever its figures would change, so that cached ones are not taken for them.
        knows: what more knowledge of the class does to its figures: makes them larger ("more") or smaller ("less"),
            moves them away from the oracles' to either side ("either"), or nothing, where they are told beside the
            others and not judged ("neither"). By how the figures' names begin: the longest beginning counts, and ""
            stands for all others.
        run: the figures by name, of one subject.
        cost: forward passes over one image, about, for the estimate of time; a backward pass counts as two.
        applies: None, or why the attack says nothing of this subject (no BatchNorm, no memories).
        source: paper and equation.
    """

    name: str
    level: str
    version: int
    knows: dict[str, str]
    run: Callable[[Subject, Case], dict[str, Measure]]
    cost: Callable[[Case], int]
    applies: Callable[[Subject, Case], str | None] = lambda _subject, _case: None
    source: str = ""

    def meaning(self, figure: str) -> str:
        """ "more" or "less": what a larger figure of that name says about knowledge of the class."""
        return self.knows[max((start for start in self.knows if figure.startswith(start)), key=len)]
