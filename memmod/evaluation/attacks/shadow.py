"""Shadow models: membership relative to networks that never saw the class, and a classifier trained on their logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from memmod.errors import DataError
from memmod.evaluation.attacks.attack import Attack, Case, Measure, Subject
from memmod.evaluation.attacks.bootstrap import DRAWS, bootstrap
from memmod.evaluation.attacks.measuring import draw, images, logits
from memmod.evaluation.attacks.membership import QUICK_DRAWS, TINY, members_and_others, separation
from memmod.evaluation.attacks.membership import cost as membership_cost

if TYPE_CHECKING:
    from memmod.data import Split

NAME = "shadow"
# RMIA's threshold of the likelihood ratio and its slope from Pr(x | OUT) to Pr(x | IN). With the γ = 2 of the paper's
# experiments no image of a network as sure as the digits ResNet reaches it, and all scores are 0.
GAMMA, SLOPE = 1.0, 0.3
NEAREST = 3
MOST, QUICK = 1000, 300
# Log-probabilities below this are no evidence, and would dominate a linear classifier.
LEAST_LOG = -20.0


def shadows(subject: Subject, case: Case) -> list[nn.Module]:
    """The case's oracles but the subject itself."""
    return [oracle for oracle in case.oracles if oracle is not subject.network]


def relative_scores(own: Tensor, out: Tensor, own_z: Tensor, out_z: Tensor) -> Tensor:
    """RMIA's score ``[n]``: the share of population images z with LR(x, z) ≥ γ.

    LR(x, z) = (Pr(x | θ) / Pr(x)) / (Pr(z | θ) / Pr(z)), Pr(x) = ½ ((1 + a) · mean over OUT models + 1 - a).

    Args:
        own: ``[n]``, the subject's probability of each image's label; own_z: ``[m]``, of the population's.
        out: ``[S, n]``, those of S shadow models trained without the image; out_z: ``[S, m]``.

    Source: Zarifzadeh et al., ICML 2024 (arXiv 2312.03262), equations 2, 3 and offline approximation.
    """
    ratio, ratio_z = (
        p.clamp_min(TINY) / (((1 + SLOPE) * outs.mean(0) + 1 - SLOPE) / 2) for p, outs in ((own, out), (own_z, out_z))
    )
    ordered = ratio_z.sort().values
    return torch.searchsorted(ordered, ratio / GAMMA, right=True).double() / len(ordered)


def _of_label(case: Case, network: nn.Module, split: Split, numbers: Tensor) -> Tensor:
    z = logits(case, network, split, numbers).double()
    return z.softmax(1).gather(1, split.labels[numbers][:, None]).squeeze(1)


def _membership(subject: Subject, case: Case) -> dict[str, Measure]:
    train, test = members_and_others(case, NAME, at_least=20)
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(case.seed))
    others, population = (test[part] for part in order.tensor_split(2))
    places = ((case.train, train), (case.test, others), (case.test, population))
    own = [_of_label(case, subject.network, *place) for place in places]
    out = [torch.stack([_of_label(case, shadow, *place) for shadow in shadows(subject, case)]) for place in places]
    scores = [relative_scores(own[i], out[i], own[2], out[2]) for i in (0, 1)]
    return separation("rmia", *scores, case)


def nearest_classes(case: Case, oracles: list[nn.Module], numbers: Tensor) -> list[int]:
    """The other classes, at most 3, that the oracles see most in training images ``[n]`` of the forgotten ones."""
    kept = [c for c in range(case.num_classes) if c not in case.forget]
    seen = sum(logits(case, oracle, case.train, numbers).softmax(1)[:, kept].mean(0) for oracle in oracles)
    return sorted(kept[i] for i in seen.topk(min(NEAREST, len(kept))).indices.tolist())


def retained_log_probabilities(z: Tensor, forget: tuple[int, ...]) -> Tensor:
    """Log-probabilities ``[n, C - F]`` among the retained classes, of logits ``[n, C]``; at least -20."""
    kept = [c for c in range(z.shape[1]) if c not in forget]
    return z[:, kept].double().log_softmax(1).clamp_min(LEAST_LOG)


def balanced(found: Tensor, labels: Tensor) -> float:
    """Mean of the recalls of both kinds, of bool ``[n]`` answers and labels."""
    kinds = [(found == labels)[labels == kind] for kind in (True, False)]
    return sum(right.double().mean().item() if len(right) else 0.0 for right in kinds) / 2


def _classifier(x: Tensor, y: Tensor) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, class_weight="balanced"))
    return model.fit(x.numpy(), y.numpy())


def _class_membership(subject: Subject, case: Case) -> dict[str, Measure]:
    most = QUICK if case.quick else MOST
    own = images(case, case.train, forgotten=True, at_most=most, at_least=10, attack=NAME)
    oracles = shadows(subject, case)
    near = nearest_classes(case, oracles, own)
    parts = {}
    for name, split in (("train", case.train), ("test", case.test)):
        mine = images(case, split, forgotten=True, at_most=most, at_least=10, attack=NAME)
        others = torch.isin(split.labels, torch.tensor(near)).nonzero().flatten()
        if len(others) < 10:
            raise DataError(
                f"the attack {NAME!r} needs at least 10 images of classes {near}, the nearest, but the {name} split "
                f"has {len(others)}: add images, or leave this attack out"
            )
        numbers = torch.cat((mine, draw(others, most, case.seed)))
        parts[name] = (split, numbers, torch.arange(len(numbers)) < len(mine))

    def seen_by(network: nn.Module, name: str) -> Tensor:
        return retained_log_probabilities(logits(case, network, *parts[name][:2]), case.forget)

    labels, tested = parts["train"][2], parts["test"][2]
    seen = torch.cat([seen_by(oracle, "train") for oracle in oracles])
    models = {
        "class/shadow": _classifier(seen, labels.repeat(len(oracles))),
        "class/own": _classifier(seen_by(subject.network, "train"), labels),
    }
    x = seen_by(subject.network, "test").numpy()
    figures = {}
    for name, model in models.items():
        found = torch.from_numpy(model.predict(x))
        figures[name] = Measure(balanced(found, tested), 1 / (2 * int(tested.sum())), _interval(found, tested, case))
    return figures


def _interval(found: Tensor, labels: Tensor, case: Case) -> tuple[float, float]:
    right = found == labels
    return bootstrap(
        lambda a, b: (a.double().mean().item() + b.double().mean().item()) / 2,
        right[labels],
        right[~labels],
        draws=QUICK_DRAWS if case.quick else DRAWS,
        seed=case.seed,
    )


def run(subject: Subject, case: Case) -> dict[str, Measure]:
    """Figures of two attacks with the case's oracles, but the subject itself, as shadow models.

    "auc/rmia", "tpr/rmia": membership of the class's training images against half of its test images, by RMIA with the
    oracles as OUT models and the other half as population. "class/shadow": balanced accuracy, on test images, of a
    logistic regression that tells the class from its 3 nearest by the subject's log-probabilities of the retained
    classes, trained on the oracles': further from theirs the less the subject answers as they do; "class/own": trained
    on the subject's.

    Raises:
        DataError: fewer than 20 images of the forgotten classes, or 10 of their nearest, in either split.
    """
    return _membership(subject, case) | _class_membership(subject, case)


SHADOW = Attack(
    name=NAME,
    level="L0",
    version=1,
    knows={"": "more", "class/shadow": "either"},
    run=run,
    cost=lambda case: (1 + len(case.oracles)) * (membership_cost(case) + 4 * (QUICK if case.quick else MOST)),
    applies=lambda subject, case: None if shadows(subject, case) else "there is no oracle beside it",
    source="RMIA, Zarifzadeh et al., arXiv 2312.03262; shadow models, Shokri et al., arXiv 1610.05820",
)
