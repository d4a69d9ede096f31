"""Gates forced open: whoever holds the memories opens the units that a class closes most, or selects another row."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from memmod.errors import ModelError
from memmod.evaluation.accuracy import as_forget
from memmod.evaluation.attacks.attack import Attack, Case, Measure, Subject
from memmod.evaluation.attacks.measuring import accuracy, gated_accuracy, tested_count
from memmod.surgery.base_copy import detached_copy

if TYPE_CHECKING:
    from memmod.model import ModulatedModel

NAME = "gate flip"
SHARES = (0.01, 0.05, 0.10, 0.25)
# σ(30) is 1 in fp32.
OPEN = {"sigmoid": 30.0, "identity": 1.0, "hard": 1.0}
QUICK_OTHERS = 3


def with_open_gates(wf: ModulatedModel, forget: tuple[int, ...], fraction: float) -> ModulatedModel:
    """A copy with the most closed `fraction` of all units' gates, at least one, open in the rows of these classes."""
    opened = detached_copy(wf)
    gates = {name: rows[list(forget)].prod(0) for name, rows in opened.gates().items()}
    order = torch.cat([row.flatten() for row in gates.values()]).argsort(stable=True)
    chosen = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    chosen[order[: max(1, math.ceil(fraction * len(order)))]] = True
    state, start = opened.memory_state(), 0
    for name, row in gates.items():
        part = chosen[start : start + row.numel()].view(row.shape)
        start += row.numel()
        for c in forget:
            state[name][c][part] = OPEN[opened.config.gate]
    opened.load_memory_state(state)
    return opened


def _others(case: Case) -> list[int]:
    others = [c for c in range(case.num_classes) if c not in case.forget]
    return others[:QUICK_OTHERS] if case.quick else others


def run(subject: Subject, case: Case) -> dict[str, Measure]:
    """Acc_f with the selected classes' most closed gates open, and how far wrong rows disturb these classes.

    "acc_forget/k%": accuracy on the selected classes' test images with the k % most closed gates open. "leakage": what
    a row of another class takes from the original's accuracy on them, the mean over the other rows.
    """
    wf = subject.wf
    if wf is None:
        raise ModelError(f"{subject.name} has no memories to change: {NAME!r} is for modulated models")
    figures = {
        f"acc_forget/{fraction:.0%}": gated_accuracy(
            case, with_open_gates(wf, case.forget, fraction), as_forget(case.forget), NAME
        )
        for fraction in SHARES
    }
    original = accuracy(case, case.original, forgotten=True, attack=NAME)
    wrong = [gated_accuracy(case, wf, c, NAME).value for c in _others(case)]
    drop = original.value - sum(wrong) / len(wrong)
    return figures | {"leakage": Measure(drop, original.resolution)}


GATE_FLIP = Attack(
    name=NAME,
    level="L2",
    version=1,
    knows={"": "more", "leakage": "neither"},
    run=run,
    cost=lambda case: (len(SHARES) + 1 + len(_others(case))) * tested_count(case, forgotten=True),
    applies=lambda subject, _case: "it has no memories" if subject.wf is None else None,
    source="gates of arXiv 2304.02049, opened in the order of their closure",
)
