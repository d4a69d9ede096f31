"""Relearning: how fast a few steps of training bring the class back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memmod.errors import ModelError
from memmod.evaluation.accuracy import as_forget
from memmod.evaluation.attacks.attack import Attack, Case, Measure, Subject
from memmod.evaluation.attacks.measuring import (
    accuracy,
    as_file,
    example,
    gated_accuracy,
    images,
    tested_count,
)
from memmod.evaluation.features import head_name
from memmod.surgery.base_copy import detached_copy

NAME, MEMORIES = "relearning", "relearning memories"
STEPS = (0, 1, 2, 5, 10, 20, 40)
QUICK_STEPS = (0, 1, 2, 5, 10)
REPORTED_STEP = 5
SHOTS = 10
BATCH = 64
# Adam's: of whole networks, of heads alone, and of memories as they were trained.
LR = {"all": 1e-3, "head": 1e-2, "memories": 1e-1}
# A logit that a network itself masks is -∞, and so would be the loss.
MASKED = -1e4
DATA = ("10-shot", "retained", "full")
QUICK_DATA = ("10-shot",)


def batches_for(case: Case, data: str) -> Callable[[int], Tensor]:
    """From a step to the numbers of its training images: the same ones for every subject.

    "10-shot": always the same 10 images of each forgotten class, the rest of 64 (at least half) retained ones;
    "retained": 64 images of other classes; "full": 64 of all.

    Raises:
        DataError: too few images.
    """
    count = 2 if data == "full" else 1
    retained = images(case, case.train, forgotten=False, at_least=count, attack=NAME)
    if data == "10-shot":
        shots = torch.cat([_shots(case, c) for c in case.forget])
    elif data == "retained":
        shots = retained[:0]
    else:
        shots, retained = retained[:0], torch.arange(len(case.train))
    rest = max(BATCH - len(shots), BATCH // 2)

    def numbers(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(case.seed * 1_000_003 + step)
        return torch.cat((shots, retained[torch.randint(len(retained), (rest,), generator=generator)]))

    return numbers


def _shots(case: Case, c: int) -> Tensor:
    one = replace(case, forget=(c,))
    return images(one, case.train, forgotten=True, at_most=SHOTS, at_least=SHOTS, attack=NAME)


def curve(
    case: Case,
    parameters: list[nn.Parameter],
    lr: float,
    numbers: Callable[[int], Tensor],
    forward: Callable[[Tensor], Tensor],
    measure: Callable[[], Measure],
    steps: tuple[int, ...] | None = None,
) -> list[Measure]:
    """Acc_f after each of the steps: cross-entropy on the images' labels by Adam, all layers in eval mode.

    Args:
        parameters: what is trained.
        numbers: of a step's training images.
        forward: logits ``[B, C]`` of images ``[B, ...]``.
        steps: ascending; default: those of the case.
    """
    steps = steps or (QUICK_STEPS if case.quick else STEPS)
    optimiser = torch.optim.Adam(parameters, lr=lr)
    found = []
    for step in range(steps[-1] + 1):
        if step in steps:
            found.append(measure())
        if step < steps[-1]:
            chosen = numbers(step)
            x = case.train.batch(chosen).to(parameters[0].device)
            with torch.enable_grad():
                loss = F.cross_entropy(forward(x).float().clamp_min(MASKED), case.train.labels[chosen].to(x.device))
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
    return found


def summary(found: list[Measure], steps: tuple[int, ...]) -> tuple[Measure, Measure]:
    """(after 5 steps, mean over the steps by the trapezoidal rule) of a curve."""
    values = torch.tensor([measure.value for measure in found], dtype=torch.float64)
    mean = torch.trapezoid(values, torch.tensor(steps, dtype=torch.float64)).item() / (steps[-1] - steps[0])
    return found[steps.index(REPORTED_STEP)], Measure(mean, found[0].resolution)


def _figures(case: Case, what: str, curve_of: Callable[[str], list[Measure]]) -> dict[str, Measure]:
    figures = {}
    for data in QUICK_DATA if case.quick else DATA:
        after, mean = summary(curve_of(data), QUICK_STEPS if case.quick else STEPS)
        figures |= {f"after_5/{data}/{what}": after, f"mean/{data}/{what}": mean}
    return figures


def run(subject: Subject, case: Case) -> dict[str, Measure]:
    """Acc_f after 5 steps, "after_5/DATA/WHAT", and on average over 40 (10 in a first look), "mean/DATA/WHAT".

    DATA as in `batches_for`; WHAT is "head" or "all", all weights.

    Raises:
        DataError: fewer than 10 training images of a forgotten class.
    """
    figures = {}
    for what in ("head", "all"):

        def curve_of(data: str, what: str = what) -> list[Measure]:
            network = as_file(case, subject.network).requires_grad_(False)
            part = network if what == "all" else network.get_submodule(head_name(network, example(case, network)))
            parameters = [p.requires_grad_(True) for p in part.parameters() if p.is_floating_point()]
            return curve(
                case,
                parameters,
                LR[what],
                batches_for(case, data),
                lambda x: case.logits(network, x),
                lambda: accuracy(case, network, forgotten=True, attack=NAME),
            )

        figures |= _figures(case, what, curve_of)
    return figures


def run_memories(subject: Subject, case: Case) -> dict[str, Measure]:
    """The same with the memories trained under the selection: "after_5/DATA/memories", "mean/DATA/memories".

    Raises:
        DataError: fewer than 10 training images of a forgotten class.
    """
    if subject.wf is None:
        raise ModelError(f"{subject.name} has no memories to train: {MEMORIES!r} is for modulated models")
    forget = as_forget(case.forget)

    def curve_of(data: str) -> list[Measure]:
        wf = detached_copy(subject.wf)
        return curve(
            case,
            list(wf.memory_parameters()),
            LR["memories"],
            batches_for(case, data),
            lambda x: wf.logits(wf(x, forget=forget)),
            lambda: gated_accuracy(case, wf, forget, MEMORIES),
        )

    return _figures(case, "memories", curve_of)


def _cost(case: Case, parts: int) -> int:
    steps, data = (QUICK_STEPS, QUICK_DATA) if case.quick else (STEPS, DATA)
    return parts * len(data) * (3 * BATCH * steps[-1] + len(steps) * tested_count(case, forgotten=True))


def _untrainable(subject: Subject, _case: Case) -> str | None:
    if subject.wf is None:
        return "it has no memories"
    return "its gates have no gradient" if subject.wf.config.gate == "hard" else None


RELEARNING = Attack(
    name=NAME,
    level="L1",
    version=1,
    knows={"": "more"},
    run=run,
    cost=lambda case: _cost(case, 2),
    source="relearn time, Golatkar et al., arXiv 1911.04933; Tarun et al., arXiv 2111.08947",
)
RELEARNING_MEMORIES = Attack(
    name=MEMORIES,
    level="L2",
    version=1,
    knows={"": "more"},
    run=run_memories,
    cost=lambda case: _cost(case, 1),
    applies=_untrainable,
    source="relearning with the gates of arXiv 2304.02049 as the only weights",
)
