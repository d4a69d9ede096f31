"""How like the original's, and like an oracle's, a network's features of a forgotten class are."""

from __future__ import annotations

import torch
from torch import nn

from memmod.data import at_most
from memmod.evaluation.attacks.attack import Attack, Case, Measure, Subject
from memmod.evaluation.attacks.probes import thinned, without_repetition
from memmod.evaluation.features import feature_points, features
from memmod.evaluation.metrics import linear_cka

# More images change linear CKA in its third digit, and cost time.
IMAGES, QUICK_IMAGES = 1000, 300


def _cka(subject: Subject, case: Case) -> dict[str, Measure]:
    own = case.is_forgotten(case.test.labels).nonzero().flatten()
    own = own[at_most(case.test.labels[own], QUICK_IMAGES if case.quick else IMAGES, case.seed)]
    split = case.test.subset(own)
    points = thinned(feature_points(subject.network, case.test.batch(torch.arange(2))))

    def taken(network: nn.Module) -> dict[str, torch.Tensor]:
        return features(network, split, points)

    own_features, original = taken(subject.network), taken(case.original)
    oracles = [taken(oracle) for oracle in case.oracles]
    one = 1 / len(split)
    figures = {}
    for point in without_repetition(original):
        values = [linear_cka(own_features[point], oracle[point]) for oracle in oracles]
        figures[f"CKA/original/{point}"] = Measure(linear_cka(own_features[point], original[point]), one)
        figures[f"CKA/oracles/{point}"] = Measure(sum(values) / len(values), one)
    return figures


CKA = Attack(
    name="representation",
    level="L1",
    version=1,
    knows={"CKA/original": "more", "CKA/oracles": "less"},
    run=_cka,
    cost=lambda case: (2 + len(case.oracles)) * min(IMAGES, len(case.test) // case.num_classes),
    source="linear CKA on test images of the forgotten classes, arXiv 1905.00414",
)
