"""Which of a method's settings to show beside its paper's: tried on training images held out of the task."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from memmod.data import Split
from memmod.errors import RunError
from memmod.evaluation.accuracy import BATCH, batches
from memmod.unlearning.baselines.method import Diverged, ForgetTask, Method
from memmod.unlearning.baselines.run import unlearn_with

# Of the held-out forgotten images, how many may still be named rightly by a network that counts as having forgotten.
FORGOTTEN = 0.01
# Of the original's accuracy on held-out retained images, how much a network must keep not to count as ruined.
KEPT = 0.9
HELD_OUT = 0.1


@dataclass(frozen=True)
class Row:
    """One setting that was tried.

    Args:
        config: the setting.
        acc_forget: accuracy on held-out images of the forgotten classes; None where it diverged.
        acc_retain: on those of the classes that stay; None where it diverged.
        seconds: of the run.
        diverged: why it diverged; None where it did not.
    """

    config: Any
    acc_forget: float | None
    acc_retain: float | None
    seconds: float
    diverged: str | None = None


@dataclass(frozen=True)
class Tuned:
    """What a search found: the best `config`, a `table` of all in the grid's order, and the `seconds` of them all."""

    config: Any
    table: tuple[Row, ...]
    seconds: float


def tune(method: Method, *tasks: ForgetTask, seed: int = 0) -> Tuned:
    """Try every setting of a method's grid on a task, or on several, whose accuracies are averaged.

    A tenth of the training images of each class, forgotten or not, is held out of what the method trains on, and
    decides: of the settings that leave at most 1 % accuracy on forgotten images the one with the highest accuracy on
    retained images, of which the first where several are equal; where none does, the one with the lowest accuracy on
    forgotten images, of equal ones that with the highest on retained. Settings that cost more than a tenth of the
    original's accuracy on retained images stand back as long as others are left: a network that answers one class
    has forgotten every other. A setting that diverges on any task is a row of the table and is never chosen. The test
    split is not looked at.

    Args:
        tasks: at least one.
        seed: of what is held out; the runs draw by their task's.

    Raises:
        Diverged: every setting did.
        DataError: a class has fewer than 2 images.
        RunError: as `unlearn_with`.
    """
    started = time.perf_counter()
    trials = [_Trial(task, seed) for task in tasks]
    table = []
    for config in method.settings():
        begun = time.perf_counter()
        try:
            found = [trial.run(method, config) for trial in trials]
        except Diverged as error:
            table.append(Row(config, None, None, time.perf_counter() - begun, str(error)))
            continue
        forgotten, kept, seconds = (math.fsum(values) for values in zip(*found, strict=True))
        table.append(Row(config, forgotten / len(trials), kept / len(trials), seconds))
    original = math.fsum(trial.original() for trial in trials) / len(trials)
    return Tuned(best(method.name, table, original).config, tuple(table), time.perf_counter() - started)


class _Trial:
    """A task without a tenth of its images, by which a setting is judged."""

    def __init__(self, task: ForgetTask, seed: int) -> None:
        retain, self.held_retain = task.retain.holdout(HELD_OUT, seed)
        forget, self.held_forget = task.forget.holdout(HELD_OUT, seed)
        self.task, self.rest = task, replace(task, retain=retain, forget=forget)

    def run(self, method: Method, config: Any) -> tuple[float, float, float]:
        """Accuracy on the forgotten and on the retained images held out, and the seconds that it took."""
        outcome = unlearn_with(method, self.rest, config)
        forgotten, kept = (accuracy(self.task, outcome.network, held) for held in (self.held_forget, self.held_retain))
        return forgotten, kept, outcome.seconds

    def original(self) -> float:
        """The original's accuracy on the retained images held out."""
        return accuracy(self.task, self.task.network, self.held_retain)


def best(method: str, table: list[Row], original: float) -> Row:
    """The row that `tune` chooses, where the original network has this accuracy on held-out retained images.

    Raises:
        Diverged: every setting did.
    """
    left = [row for row in table if row.diverged is None]
    if not left:
        raise Diverged(f"{method} diverged with every setting of its grid, the first time so: {table[0].diverged}")
    left = [row for row in left if row.acc_retain >= KEPT * original] or left
    forgotten = [row for row in left if row.acc_forget <= FORGOTTEN]
    if forgotten:
        return max(forgotten, key=lambda row: row.acc_retain)
    return min(left, key=lambda row: (row.acc_forget, -row.acc_retain))


@torch.no_grad()
def accuracy(task: ForgetTask, network: nn.Module, split: Split) -> float:
    """The share of a split's images that a network names rightly.

    Raises:
        RunError: the split has no images.
    """
    if len(split) == 0:
        raise RunError("there are no images to measure an accuracy on")
    right = 0
    for x, labels in batches(split, BATCH, task.device):
        right += int((task.logits(network, x).argmax(1).cpu() == labels).sum())
    return right / len(split)
