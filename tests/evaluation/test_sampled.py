"""The quick estimate that training uses."""

from __future__ import annotations

import pytest
import torch

from memmod.evaluation import SampledSplit
from tests.evaluation.helpers import half_forgetting, noisy


def sampled(others: int, images: int = 7, seed: int = 0) -> SampledSplit:
    return SampledSplit(noisy(images), 4, others, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("others", [1, 2])
def test_against_a_count_image_by_image(others):
    wf, estimate = half_forgetting(), sampled(others)
    own, retained = [[] for _ in range(4)], []
    for x, label, chosen in zip(estimate.images, estimate.labels.tolist(), estimate.others.tolist(), strict=True):
        with torch.no_grad():
            own[label].append(int(wf(x[None], forget=label)[0].argmax()) == label)
            retained += [int(wf(x[None], forget=c)[0].argmax()) == label for c in chosen]
    found = estimate.accuracies(wf)
    assert found.acc_forget == pytest.approx([sum(hits) / len(hits) for hits in own])
    assert found.mean_retain == pytest.approx(sum(retained) / len(retained))
    assert found.worst_forget == max(found.acc_forget) == found.acc_forget[found.worst_class]


def test_the_base_accuracy_selects_nothing():
    wf, estimate = half_forgetting(), sampled(1)
    with torch.no_grad():
        right = (wf.unload()(estimate.images).argmax(1) == estimate.labels).float().mean().item()
    assert estimate.base_accuracy(wf) == pytest.approx(right)


@pytest.mark.parametrize("others", [1, 3, 9])
def test_the_other_classes_are_others_and_no_two_alike(others):
    estimate = sampled(others, images=50)
    assert estimate.others.shape == (200, min(others, 3))
    for label, chosen in zip(estimate.labels.tolist(), estimate.others.tolist(), strict=True):
        assert label not in chosen and len(set(chosen)) == len(chosen) and set(chosen) <= {0, 1, 2, 3}


def test_the_generator_decides():
    assert torch.equal(sampled(1).others, sampled(1).others)
    assert not torch.equal(sampled(1).others, sampled(1, seed=1).others)


def test_the_draw_does_not_depend_on_its_parts():
    estimate = sampled(2, images=200)
    ranks = torch.rand(800, 4, generator=torch.Generator().manual_seed(0))
    expected = ranks.scatter_(1, estimate.labels.unsqueeze(1), 2.0).argsort(1)[:, :2]
    assert torch.equal(estimate.others, expected)


def test_images_that_take_much_are_read_for_each_estimate(monkeypatch: pytest.MonkeyPatch):
    wf, held = half_forgetting(), sampled(2)
    monkeypatch.setattr("memmod.evaluation.sampled.MOST_BYTES", 0)
    read = sampled(2)
    assert held.images is not None and read.images is None
    assert read.accuracies(wf) == held.accuracies(wf) and read.base_accuracy(wf) == held.base_accuracy(wf)
