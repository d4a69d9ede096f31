"""The scorecard: its parts are the evaluations they claim to be."""

from __future__ import annotations

import json

import pytest
import torch

from memmod.errors import DataError
from memmod.evaluation import evaluate, forward_passes, random_gates, random_sets, scorecard, without_gates
from tests.evaluation.helpers import half_forgetting, noisy
from tests.unlearning.problem import NAMES, modulated, trained_base


def images():
    return noisy(6).subset(torch.cat((torch.arange(6), torch.arange(8, 24))))


def test_methods_and_sets():
    wf, test = half_forgetting(), images()
    card = scorecard(wf, trained_base(), test, set_sizes=(2, 3), sets_per_size=3, seed=5)
    singles = [(c,) for c in range(4)]
    original, masked = without_gates(trained_base(), test, singles, 4)
    shuffled = evaluate(random_gates(wf, 5), test, method="random gates")
    assert card.methods == (evaluate(wf, test), original, masked, shuffled)
    assert [method.method for method in card.methods] == ["memmod", "original", "logit mask", "random gates"]
    assert list(card.sets) == [2, 3]
    for size, methods in card.sets.items():
        drawn = random_sets(4, size, 3, seed=5)
        assert methods == (evaluate(wf, test, drawn), *without_gates(trained_base(), test, drawn, 4))


def test_base_accuracy_and_difference():
    wf, test = half_forgetting(), images()
    card = scorecard(wf, trained_base(), test, set_sizes=())
    with torch.no_grad():
        right = trained_base()(test.batch(torch.arange(len(test)))).argmax(1) == test.labels
    assert card.base_accuracy == pytest.approx(right.double().mean().item())
    for c in range(4):
        base = right[test.labels != c].double().mean().item()
        assert card.difference()[c] == pytest.approx(card.memmod.acc_retain[c] - base)
    assert card.mean_difference == pytest.approx(sum(card.difference()) / 4)
    assert card.mean_difference != 0


def test_without_a_base_the_model_stands_in():
    wf, test = half_forgetting(), images()
    assert scorecard(wf, None, test) == scorecard(wf, trained_base(), test)


def test_sizes_that_leave_no_class_out_are_passed_over():
    card = scorecard(half_forgetting(), None, images(), set_sizes=(3, 4, 5), sets_per_size=2)
    assert list(card.sets) == [3]


@pytest.mark.parametrize("sizes", [(), (2, 3), (2, 9)])
def test_forward_passes_are_known_in_advance(sizes):
    passed, test = [], images()
    scorecard(half_forgetting(), None, test, set_sizes=sizes, batch_size=7, on_image=passed.append)
    assert sum(passed) == forward_passes(4, sizes) * len(test)


def test_json_and_table():
    card = scorecard(half_forgetting(), None, images(), sets_per_size=2)
    values = json.loads(json.dumps(card.to_dict()))
    assert values["class_names"] == list(NAMES) and values["images"] == 22
    assert values["methods"][0]["difference"] == list(card.difference())
    assert [method["method"] for method in values["sets"]["3"]] == ["memmod", "original", "logit mask"]
    text = str(card)
    for expected in (*NAMES, "mean, random gates", "worst, memmod", "2 random sets of 2, logit mask", "22 images"):
        assert expected in text
    cow = next(line for line in text.splitlines() if "cow" in line)
    for share in (card.memmod.acc_forget[2], card.memmod.acc_retain[2], card.original.acc_retain[2]):
        assert f"{100 * share:.1f} %" in cow
    assert card.difference()[2] != 0 and f"{100 * card.difference()[2]:+.2f}" in cow


def test_names_default_to_numbers_and_can_be_given():
    wf = modulated()
    wf.class_names = None
    assert scorecard(wf, None, images(), set_sizes=()).class_names == ("0", "1", "2", "3")
    assert scorecard(wf, None, images(), set_sizes=(), class_names="wxyz").class_names == tuple("wxyz")


def test_a_class_without_images():
    with pytest.raises(DataError, match="no images of class 3"):
        scorecard(half_forgetting(), None, noisy(5).subset(torch.arange(15)))
