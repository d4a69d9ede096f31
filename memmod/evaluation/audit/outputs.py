"""What a network's outputs tell of a forgotten class: accuracies, and distances to networks that never saw it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memmod.errors import DataError
from memmod.evaluation.attacks.attack import Attack, Case, Measure, Subject
from memmod.evaluation.attacks.measuring import device_of, hits, images, logits
from memmod.evaluation.metrics import (
    js_divergence,
    mean_activation_distance,
    rms_activation_distance,
    total_variation,
    zrf,
)


def _accuracy(subject: Subject, case: Case) -> dict[str, Measure]:
    labels = case.test.labels
    right = hits(case, subject.network, case.test, torch.arange(len(labels)))
    own = case.is_forgotten(labels)
    figures = {}
    for name, chosen in (("Acc_f", own), ("Acc_r", ~own)):
        count = int(chosen.sum())
        if count == 0:
            raise DataError(f"the test split has no images for {name}, so that it cannot be measured: add some")
        figures[name] = Measure(right[chosen].double().mean().item(), 1 / count)
    return figures


def _distances(subject: Subject, case: Case) -> dict[str, Measure]:
    own = images(case, case.test, forgotten=True, attack="outputs")
    p = _probabilities(subject.network, case, own)
    oracles = [_probabilities(oracle, case, own) for oracle in case.oracles]
    one = 1 / len(own)

    def mean(values: list[float]) -> Measure:
        return Measure(sum(values) / len(values), one)

    figures = {
        "total variation": mean([total_variation(p, q) for q in oracles]),
        "JS divergence (nats)": mean([js_divergence(p, q).mean().item() for q in oracles]),
        "activation distance (mean)": mean([mean_activation_distance(p, q) for q in oracles]),
        "activation distance (RMS)": mean([rms_activation_distance(p, q) for q in oracles]),
    }
    if case.fresh is not None:
        random = case.fresh(case.seed + 1).to(device_of(subject.network)).eval()
        figures["ZRF"] = Measure(zrf(p, _probabilities(random, case, own)), one)
    return figures


def _probabilities(network: nn.Module, case: Case, numbers: Tensor) -> Tensor:
    return logits(case, network, case.test, numbers).double().softmax(1)


ACCURACY = Attack(
    name="accuracy",
    level="L0",
    version=1,
    knows={"Acc_f": "more", "Acc_r": "less"},
    run=_accuracy,
    cost=lambda case: len(case.test),
    source="accuracy on test images of the forgotten classes (Acc_f) and of all others (Acc_r)",
)

OUTPUTS = Attack(
    name="outputs",
    level="L0",
    version=1,
    knows={"": "more", "ZRF": "less"},
    run=_distances,
    cost=lambda case: len(case.test) * (2 + len(case.oracles)) // case.num_classes,
    source="on test images of the forgotten classes, to the mean of the oracles; ZRF: arXiv 2205.08096",
)
