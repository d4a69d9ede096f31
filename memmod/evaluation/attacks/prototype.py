"""A row of the head made from a few images: prototypical relearning (arXiv 2506.01318)."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memmod.evaluation.attacks.attack import Attack, Case, Measure, Subject
from memmod.evaluation.attacks.bootstrap import bootstrap
from memmod.evaluation.attacks.measuring import (
    QUICK_RETAINED,
    as_file,
    example,
    images,
    logits,
    tested,
    tested_count,
)
from memmod.evaluation.features import PENULTIMATE, features, head_name

NAME = "prototype"
SHOTS = 5
DRAWS = 10
MIXES = (0.5, 1.0)
# Of the retained images at most this share may fall to the restored class.
HARM = 0.01


def mixed_row(row: Tensor, shots: Tensor, centre: Tensor, norm: float, mix: float) -> Tensor:
    """(1 - mix) · row + mix · norm · (p - centre) / ‖p - centre‖, p the mean of the shots.

    Args:
        row: ``[D]``, the class's row of the head.
        shots: ``[k, D]``, features of images of the class.
        centre: ``[D]``, mean feature of the other classes.
    """
    return (1 - mix) * row + mix * norm * F.normalize(shots.mean(0) - centre, dim=0)


def harmless_bias(scores: Tensor, others: Tensor, harm: float = HARM) -> float:
    """The largest bias with which at most a share `harm` of retained images falls to the class.

    Args:
        scores: ``[n]``, the new row times their features.
        others: ``[n]``, their largest logit of another class.
    """
    margins = (others - scores).sort().values
    return margins[int(harm * len(margins))].item()


def run(subject: Subject, case: Case) -> dict[str, Measure]:
    """Acc_f, "acc_forget/MIX", after each forgotten class's row is mixed with the prototype of 5 training images.

    The prototype is taken from the mean feature of retained images and has the length of the other rows; the row's bias
    is the largest that moves 1 % of retained training images. Mean over 10 draws of images; intervals over test images.

    Raises:
        DataError: fewer than 5 training images of a forgotten class.
    """
    network = as_file(case, subject.network)
    head = network.get_submodule(head_name(network, example(case, network)))
    rows = head.weight.detach().flatten(1).float().cpu()
    kept = [c for c in range(case.num_classes) if c not in case.forget]
    norm = rows[kept].norm(dim=1).mean().item()
    retained = images(case, case.train, forgotten=False, at_most=QUICK_RETAINED, attack=NAME)
    target = tested(case, forgotten=True, attack=NAME)
    h_retained, h_target = (
        features(network, split, [PENULTIMATE], indices=numbers)[PENULTIMATE]
        for split, numbers in ((case.train, retained), (case.test, target))
    )
    others = logits(case, network, case.train, retained)[:, kept].amax(1)
    rivals = logits(case, network, case.test, target)[:, kept].amax(1)
    shots = {c: _shots(case, network, c) for c in case.forget}
    figures = {}
    for mix in MIXES:
        right = []
        for drawn in range(DRAWS):
            new = {}
            for c in case.forget:
                row = mixed_row(rows[c], shots[c][drawn], h_retained.mean(0), norm, mix)
                new[c] = h_target @ row + harmless_bias(h_retained @ row, others)
            labels = case.test.labels[target]
            best = torch.stack(list(new.values())).max(0)
            classes = torch.tensor(list(new))
            right.append((best.values > rivals) & (classes[best.indices] == labels))
        by_image = torch.stack(right).double().mean(0)
        interval = bootstrap(lambda sample: sample.mean().item(), by_image, seed=case.seed)
        figures[f"acc_forget/{mix:g}"] = Measure(by_image.mean().item(), 1 / len(target), interval)
    return figures


def _shots(case: Case, network: nn.Module, c: int) -> Tensor:
    """Features ``[DRAWS, SHOTS, D]`` of training images of one class."""
    one = replace(case, forget=(c,))
    own = images(one, case.train, forgotten=True, at_least=SHOTS, attack=NAME)
    generator = torch.Generator().manual_seed(case.seed)
    drawn = torch.stack([own[torch.randperm(len(own), generator=generator)[:SHOTS]] for _ in range(DRAWS)])
    found = features(network, case.train, [PENULTIMATE], indices=drawn.flatten())[PENULTIMATE]
    return found.view(DRAWS, SHOTS, -1)


PROTOTYPE = Attack(
    name=NAME,
    level="L1",
    version=1,
    knows={"": "more"},
    run=run,
    cost=lambda case: 2 * (QUICK_RETAINED + tested_count(case, forgotten=True)) + DRAWS * SHOTS,
    source="prototypical relearning, Ha et al., arXiv 2506.01318; the bias is chosen here by the harm it does",
)
