"""Acc_f and Acc_r, against a count image by image."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from memmod.errors import DataError, SelectionError
from memmod.evaluation import Accuracies, evaluate, random_sets, single_classes
from tests.evaluation.helpers import counted, half_forgetting, noisy


@pytest.mark.parametrize("norm", [True, False])
def test_every_class_by_itself(norm):
    wf, images = half_forgetting(norm), noisy(7)
    found = evaluate(wf, images)
    expected = [counted(lambda x, c=c: wf(x, forget=c), images, {c}) for c in range(4)]
    assert found.selections == ((0,), (1,), (2,), (3,))
    assert list(zip(found.acc_forget, found.acc_retain, strict=True)) == expected
    # figures that are all 0 or all 1 would let a wrong count pass
    assert len(set(found.acc_forget + found.acc_retain)) > 3


def test_sets_and_unequal_classes():
    wf, images = half_forgetting(), noisy(9, seed=5)
    images = images.subset(torch.cat((torch.arange(9), torch.arange(9, 11), torch.arange(20, 36))))
    selections = [(0, 1), (1, 3), (0, 2, 3)]
    found = evaluate(wf, images, selections)
    for row, selection in enumerate(selections):
        expected = counted(lambda x, s=selection: wf(x, forget=set(s)), images, selection)
        assert (found.acc_forget[row], found.acc_retain[row]) == expected


def test_the_size_of_batches_and_the_order_of_images_change_nothing():
    wf, images = half_forgetting(), noisy(7)
    shuffled = images.subset(torch.randperm(28, generator=torch.Generator().manual_seed(0)))
    whole = evaluate(wf, images)
    assert whole == evaluate(wf, images, batch_size=5) == evaluate(wf, shuffled)


def test_progress_counts_every_forward_pass():
    passed = []
    evaluate(half_forgetting(), noisy(7), batch_size=20, on_image=passed.append)
    assert passed == [20] * 4 + [8] * 4


def test_nothing_of_the_model_changes():
    wf = half_forgetting()
    before = wf.memory_state()
    evaluate(wf, noisy(3))
    assert all(torch.equal(before[name], memory) for name, memory in wf.memory_state().items())
    assert all(memory.grad is None for memory in wf.memory_parameters())


def test_a_class_without_images_is_named():
    images = noisy(3)
    images = images.subset((images.labels != 2).nonzero().flatten())
    with pytest.raises(DataError, match="no images of class 2,.*add images"):
        evaluate(half_forgetting(), images)
    assert evaluate(half_forgetting(), images, [(0,), (1,)]).selections == ((0,), (1,))


def test_a_selection_that_leaves_no_images():
    with pytest.raises(DataError, match="no images beside class 0, 1, 2, 3"):
        evaluate(half_forgetting(), noisy(3), [(0, 1, 2, 3)])


def test_aggregates():
    found = Accuracies("m", ((0,), (1,), (2,)), (0.0, 0.3, 0.1), (0.9, 0.6, 0.7))
    assert (found.worst_forget, found.worst_selection, found.worst_retain) == (0.3, (1,), 0.6)
    assert found.mean_forget == pytest.approx(0.4 / 3) and found.mean_retain == pytest.approx(2.2 / 3)
    values = json.loads(json.dumps(found.to_dict()))
    assert values["selections"] == [[0], [1], [2]] and values["worst_forget"] == 0.3


def test_random_sets_are_different_sorted_and_seeded():
    sets = random_sets(10, 3, 40, seed=1)
    assert len(set(sets)) == len(sets) == 40
    assert all(list(s) == sorted(set(s)) and len(s) == 3 and 0 <= s[0] and s[-1] < 10 for s in sets)
    assert set(itertools.chain(*sets)) == set(range(10))
    assert sets == random_sets(10, 3, 40, seed=1) != random_sets(10, 3, 40, seed=2)


def test_no_more_sets_than_there_are():
    assert sorted(random_sets(4, 2, 10)) == list(itertools.combinations(range(4), 2))
    assert single_classes(3) == [(0,), (1,), (2,)]


@pytest.mark.parametrize("size", [0, 4, 7])
def test_sets_that_are_empty_or_hold_every_class(size):
    with pytest.raises(SelectionError, match=f"sets of {size} classes.*with 4 classes.*between 1 and 3"):
        random_sets(4, size, 3)
