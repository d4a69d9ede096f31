"""`memmod train` in a process of its own, for the tests that kill it: train_run.py KIND:STEP ARGS, or - ARGS."""

from __future__ import annotations

import os
import signal
import sys

from memmod import training
from memmod.cli.main import app


def die(*_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(kind: str, step: int) -> None:
    """Die in the middle of an optimiser step, of a checkpoint, right after one, or while the base is measured."""
    advance, save, replace = training._Training.advance, training._Training.save, os.replace

    def advance_or_die(self):
        if self.step + 1 == step:
            first, _ = next(iter(self.optimisers.values()))
            optimise = first.step
            first.step = lambda *arguments: (optimise(*arguments), die())
        advance(self)

    def save_or_die(self, path):
        if self.step >= step:
            os.replace = die if kind == "before-replace" else lambda *paths: (replace(*paths), die())
        save(self, path)

    if kind == "measure":
        training.accuracies = die
    elif kind == "step":
        training._Training.advance = advance_or_die
    else:
        training._Training.save = save_or_die


if __name__ == "__main__":
    kill, *arguments = sys.argv[1:]
    # as often as the time that one takes allows
    training.fit.__kwdefaults__["checkpoint_seconds"] = 0.0
    if kill != "-":
        kind, at = kill.split(":")
        kill_at(kind, int(at))
    app(arguments)
