"""One round in a process of its own, for the tests that kill it: resume_run.py FOLDER MEMORIES [KIND:STEP]."""

from __future__ import annotations

import os
import signal
import sys

import torch
from safetensors.torch import save_file

from memmod.unlearning import Trainer
from memmod.unlearning.round import Round
from tests.unlearning.problem import dataset, modulated, quick

STEPS = 22


def die(*_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(kind: str, step: int) -> None:
    """Die in the middle of an optimiser step, or of the first checkpoint written at or after a step."""
    advance, save, replace = Round.advance, Round.save, os.replace
    if kind == "step":
        optimise = torch.optim.Adam.step

        def advance_or_die(self):
            if self.step + 1 == step:
                torch.optim.Adam.step = lambda *arguments: (optimise(*arguments), die())
            return advance(self)

        Round.advance = advance_or_die
    else:

        def save_or_die(self):
            if self.step >= step:
                os.replace = die if kind == "before-replace" else lambda *paths: (replace(*paths), die())
            save(self)

        Round.save = save_or_die


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, memories, *kill = sys.argv[1:]
    if kill:
        kind, at = kill[0].split(":")
        kill_at(kind, int(at))
    wf = modulated()
    result = Trainer(wf, dataset(), quick(steps=STEPS), folder, checkpoint_every=4).fit(resume=True)
    history = torch.tensor([[e.step, e.mean_retain, *e.acc_forget, *e.losses.values()] for e in result.history[1:]])
    save_file({**wf.memory_state(), "history": history, "best": torch.tensor(result.best.step)}, memories)
