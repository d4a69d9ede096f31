"""Probes: whether the features of each block still tell the class from the others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from memmod.data import at_most
from memmod.evaluation.attacks.attack import Attack, Case, Measure, Subject
from memmod.evaluation.attacks.bootstrap import DRAWS, bootstrap
from memmod.evaluation.attacks.measuring import example, images
from memmod.evaluation.attacks.membership import QUICK_DRAWS
from memmod.evaluation.features import feature_points, features, unwrapped

NAME = "probes"
NEIGHBOURS = 10
TRAINED_ON, QUICK_TRAINED_ON = 10_000, 1_000
TESTED_ON, QUICK_TESTED_ON = 10_000, 2_000
# Of a deep network's blocks, evenly spaced, the last ones among them.
MOST_POINTS = 6


def standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Features ``[N, D]`` and ``[M, D]`` with the training features' mean taken off, over their deviation."""
    mean, deviation = train.mean(0), train.std(0, unbiased=False)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    return (train - mean) / deviation, (test - mean) / deviation


def linear(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Classes ``[M]`` by a logistic regression on all classes (Alain and Bengio, arXiv 1610.01644)."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=1000).fit(train.numpy(), labels.numpy())
    return torch.from_numpy(model.predict(test.numpy()))


def nearest_mean(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Classes ``[M]`` of the nearest of the classes' mean features."""
    classes = labels.unique()
    means = torch.stack([train[labels == c].mean(0) for c in classes])
    return classes[torch.cdist(test, means).argmin(1)]


def nearest_neighbours(train: Tensor, labels: Tensor, test: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """Classes ``[M]`` of most of the k nearest features; of equals the lowest class."""
    found = []
    for part in test.split(1000):
        near = torch.cdist(part, train).topk(min(k, len(train)), dim=1, largest=False).indices
        votes = torch.zeros(len(part), int(labels.max()) + 1)
        found.append(votes.scatter_add_(1, labels[near], torch.ones_like(near, dtype=votes.dtype)).argmax(1))
    return torch.cat(found)


PROBES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "probe": linear,
    "nearest_mean": nearest_mean,
    "knn": nearest_neighbours,
}


def balanced_accuracy(right: Tensor, labels: Tensor) -> float:
    """The mean over the classes present of their recall, of bool ``[M]`` and labels ``[M]``."""
    count = torch.bincount(labels).double()
    recall = torch.bincount(labels, weights=right.double(), minlength=len(count)) / count
    return recall[count > 0].mean().item()


def thinned(points: tuple[str, ...], most: int = MOST_POINTS) -> tuple[str, ...]:
    """At most so many of the points, evenly spaced back from the last."""
    if len(points) <= most:
        return points
    return tuple(points[round(i)] for i in torch.linspace(0, len(points) - 1, most).tolist())


def _features(
    network: nn.Module, case: Case, points: tuple[str, ...]
) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor], Tensor]:
    """(features, labels ``[N]``) of the training images that probes learn from, then of the test images."""
    images(case, case.train, forgotten=True, at_least=NEIGHBOURS, attack=NAME)
    images(case, case.test, forgotten=True, attack=NAME)
    most, most_tested = (QUICK_TRAINED_ON, QUICK_TESTED_ON) if case.quick else (TRAINED_ON, TESTED_ON)
    chosen, tested = at_most(case.train.labels, most, case.seed), at_most(case.test.labels, most_tested, case.seed)
    train = features(network, case.train, points, indices=chosen)
    test = features(network, case.test, points, indices=tested)
    return train, case.train.labels[chosen], test, case.test.labels[tested]


def recall(network: nn.Module, case: Case, point: str) -> float:
    """The forgotten classes' recall by a linear probe on one point's features: one figure of `run`.

    Raises:
        DataError: fewer than 10 training images, or no test image, of the forgotten classes.
    """
    train, labels, test, expected = _features(network, case, (point,))
    x, y = standardised(train[point], test[point])
    return (linear(x, labels, y) == expected)[case.is_forgotten(expected)].double().mean().item()


def without_repetition(found: dict[str, Tensor]) -> tuple[str, ...]:
    """The points but those whose features ``[N, D]`` are the next point's: a last block, pooled, is often the head's
    input.
    """
    points = tuple(found)
    again = {
        a
        for a, b in zip(points, points[1:], strict=False)
        if found[a].shape == found[b].shape and torch.allclose(found[a], found[b], rtol=1e-4, atol=1e-5)
    }
    return tuple(point for point in points if point not in again)


def run(subject: Subject, case: Case) -> dict[str, Measure]:
    """Recall of the forgotten classes, "PROBE/recall/POINT", and balanced accuracy of all, "PROBE/balanced/POINT".

    Probes are trained on standardised features (`features`) of up to 10,000 training images of all classes, at up to
    6 points, none twice; intervals are over the test images.

    Raises:
        DataError: fewer than 10 training images, or no test image, of the forgotten classes.
    """
    network = unwrapped(subject.network, example(case, subject.network))
    points = thinned(feature_points(network, example(case, network)))
    train, labels, test, expected = _features(network, case, points)
    own = case.is_forgotten(expected)
    figures = {}
    for point in without_repetition(train):
        x, y = standardised(train[point], test[point])
        for name, probe in PROBES.items():
            right = probe(x, labels, y) == expected
            draws = QUICK_DRAWS if case.quick else DRAWS
            figures[f"{name}/recall/{point}"] = Measure(
                right[own].double().mean().item(),
                1 / int(own.sum()),
                bootstrap(lambda sample: sample.double().mean().item(), right[own], draws=draws, seed=case.seed),
            )
            both = torch.stack((right.long(), expected), 1)
            figures[f"{name}/balanced/{point}"] = Measure(
                balanced_accuracy(right, expected),
                1 / len(expected),
                bootstrap(lambda s: balanced_accuracy(s[:, 0], s[:, 1]), both, draws=draws, seed=case.seed),
            )
    return figures


def _cost(case: Case) -> int:
    most, tested = (QUICK_TRAINED_ON, QUICK_TESTED_ON) if case.quick else (TRAINED_ON, TESTED_ON)
    return min(most, len(case.train)) + min(tested, len(case.test))


PROBING = Attack(
    name=NAME,
    level="L1",
    version=1,
    knows={"": "more"},
    run=run,
    cost=_cost,
    source="linear probes, Alain and Bengio, arXiv 1610.01644; nearest class mean, Mensink et al., 2013",
)
