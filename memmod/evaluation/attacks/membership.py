"""Population membership inference: was an image of the class among those trained on, told by the probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from memmod.evaluation.attacks.attack import Attack, Case, Measure, Subject
from memmod.evaluation.attacks.bootstrap import DRAWS, bootstrap
from memmod.evaluation.attacks.measuring import images, logits

NAME = "membership"
FPR = 0.01
AT_LEAST = 10
MOST = 5000
QUICK = 300
QUICK_DRAWS = 50
# Keeps logarithms of vanished probabilities finite.
TINY = 1e-30


def modified_entropy(p: Tensor, labels: Tensor) -> Tensor:
    """Mentr(p, y) = -(1 - p_y) log p_y - Σ_{i≠y} p_i log(1 - p_i), of p ``[n, C]`` and labels ``[n]``: ``[n]``.

    Source: Song and Mittal, USENIX Security 2021 (arXiv 2003.10595), section 4.1.
    """
    own = p.gather(1, labels[:, None]).squeeze(1)
    rest = p * (1 - p).clamp_min(TINY).log()
    others = rest.sum(1) - rest.gather(1, labels[:, None]).squeeze(1)
    return -(1 - own) * own.clamp_min(TINY).log() - others


def signals(z: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Scores ``[n]`` of logits ``[n, C]``, each larger for members."""
    p = z.double().softmax(1)
    return {
        "loss": p.gather(1, labels[:, None]).squeeze(1).clamp_min(TINY).log(),
        "confidence": p.amax(1),
        "entropy": torch.xlogy(p, p).sum(1),
        "modified_entropy": -modified_entropy(p, labels),
    }


def auc(members: Tensor, others: Tensor) -> float:
    """The probability that a member's score ``[n]`` exceeds another's ``[m]``, ties counted half (Mann-Whitney)."""
    ordered = others.sort().values
    below = torch.searchsorted(ordered, members, right=False) + torch.searchsorted(ordered, members, right=True)
    return below.double().mean().item() / (2 * len(others))


def tpr_at_fpr(members: Tensor, others: Tensor, fpr: float = FPR) -> float:
    """The share of members ``[n]`` above a threshold that at most a share `fpr` of the others ``[m]`` exceeds."""
    threshold = others.sort(descending=True).values[int(fpr * len(others))]
    return (members > threshold).double().mean().item()


def separation(name: str, members: Tensor, others: Tensor, case: Case) -> dict[str, Measure]:
    """AUC and true positive rate, "auc/NAME" and "tpr/NAME", with intervals over the images of either side."""
    draws = QUICK_DRAWS if case.quick else DRAWS
    fewest = min(len(members), len(others))
    return {
        f"{kind}/{name}": Measure(
            statistic(members, others),
            1 / fewest,
            bootstrap(statistic, members, others, draws=draws, seed=case.seed),
        )
        for kind, statistic in (("auc", auc), ("tpr", tpr_at_fpr))
    }


def members_and_others(case: Case, attack: str, at_least: int = AT_LEAST) -> tuple[Tensor, Tensor]:
    """Numbers of training images, and of test images, of the forgotten classes.

    Raises:
        DataError: fewer than `at_least` of either.
    """
    most = QUICK if case.quick else MOST
    train, test = (
        images(case, split, forgotten=True, at_most=most, at_least=at_least, attack=attack)
        for split in (case.train, case.test)
    )
    return train, test


def run(subject: Subject, case: Case) -> dict[str, Measure]:
    """AUC, "auc/SIGNAL", and true positive rate at 1 % false positives at most, "tpr/SIGNAL", of four signals.

    Members are the forgotten classes' training images, the others their test images. With fewer than 100 test images
    no false positive is allowed.

    Raises:
        DataError: fewer than 10 images of either kind.
    """
    train, test = members_and_others(case, NAME)
    members, others = (
        signals(logits(case, subject.network, split, numbers), split.labels[numbers])
        for split, numbers in ((case.train, train), (case.test, test))
    )
    figures: dict[str, Measure] = {}
    for name in members:
        figures |= separation(name, members[name], others[name], case)
    return figures


def cost(case: Case) -> int:
    """Training and test images of the forgotten classes."""
    most = QUICK if case.quick else MOST
    return sum(min(most, int(case.is_forgotten(split.labels).sum())) for split in (case.train, case.test))


MEMBERSHIP = Attack(
    name=NAME,
    level="L0",
    version=1,
    knows={"": "more"},
    run=run,
    cost=cost,
    source="Yeom et al., arXiv 1709.01604 (loss); Song and Mittal, arXiv 2003.10595 (confidence, entropy, Mentr)",
)
