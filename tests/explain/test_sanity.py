"""The checks of a map say what they mean, and tell a map that depends on the memories from one that does not."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from memmod import ModulatedModel
from memmod.errors import SelectionError
from memmod.explain import attribute
from memmod.explain.sanity import (
    other_classes,
    permuted_memories,
    sum_errors,
    with_another_row,
    with_permuted_memories,
)
from memmod.explain.similarity import spearman, ssim
from tests.explain.helpers import Small, settle, with_memories

X = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(5))
CLASSES = torch.tensor([0, 3, 1, 4])


def small() -> ModulatedModel:
    torch.manual_seed(0)
    return with_memories(settle(Small()), X)


def drawn(seed: int) -> Tensor:
    return torch.randn(3, 12, 14, generator=torch.Generator().manual_seed(seed))


def test_spearman_is_scipy_s() -> None:
    one, other = drawn(0), (drawn(1) * 2).round()
    expected = [spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(one, other, strict=True)]
    torch.testing.assert_close(spearman(one, other), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(spearman(one, one.exp()), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(spearman(one, -one), -torch.ones(3, dtype=torch.float64))
    assert spearman(one, torch.zeros_like(one)).tolist() == [0.0] * 3


def test_ssim_of_one_window_is_the_formula() -> None:
    one, other = torch.rand(1, 3, 3).double(), torch.rand(1, 3, 3).double()
    a, b = ((m - m.min()) / (m.max() - m.min()) for m in (one, other))
    rows = torch.exp(-torch.tensor([1.0, 0.0, 1.0]).double() / (2 * 1.5**2))
    w = rows.outer(rows) / rows.sum() ** 2
    ma, mb = (w * a).sum(), (w * b).sum()
    va, vb, cov = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
    expected = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    torch.testing.assert_close(ssim(one, other), expected.view(1))


def test_ssim_does_not_see_scale_and_sees_structure() -> None:
    one = drawn(0)
    torch.testing.assert_close(ssim(one, 5 * one - 2), torch.ones(3, dtype=torch.float64))
    assert (ssim(one, drawn(1)) < 0.3).all()


def test_memories_change_places_among_units_and_come_back() -> None:
    wf = small()
    before = wf.memory_state()
    with permuted_memories(wf, seed=3):
        for name, memory in wf.named_memories():
            assert not torch.equal(memory, before[name])
            torch.testing.assert_close(memory.sort(1).values, before[name].sort(1).values)
    assert all(torch.equal(memory, before[name]) for name, memory in wf.named_memories())
    with pytest.raises(RuntimeError), permuted_memories(wf):
        raise RuntimeError
    assert all(torch.equal(memory, before[name]) for name, memory in wf.named_memories())


def test_another_class_is_never_the_own_one() -> None:
    classes = torch.arange(5).repeat(40)
    others = other_classes(classes, 5)
    assert (others != classes).all() and set(others.tolist()) == {0, 1, 2, 3, 4}
    with pytest.raises(SelectionError, match="none has another"):
        other_classes(torch.zeros(2, dtype=torch.int64), 1)


def test_maps_of_other_memories_and_rows_are_those_of_a_network_that_has_them() -> None:
    wf = small()
    own = attribute(wf, X, CLASSES).image()
    for changed in (with_permuted_memories(wf, X, CLASSES), with_another_row(wf, X, CLASSES)):
        assert (spearman(own, changed) < 0.999).all()
    expected = attribute(wf, X, other_classes(CLASSES, 5), classes=CLASSES).image()
    assert torch.equal(with_another_row(wf, X, CLASSES), expected)
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.fill_(0.5)
    # With equal memories there is nothing to permute, and one row is as another.
    own = attribute(wf, X, CLASSES).image()
    torch.testing.assert_close(with_permuted_memories(wf, X, CLASSES), own)
    torch.testing.assert_close(with_another_row(wf, X, CLASSES), own)


def test_the_miss_of_the_sum_is_a_share_of_the_drop() -> None:
    coarse = attribute(small(), X, CLASSES, steps=1, tolerance=None)
    torch.testing.assert_close(sum_errors(coarse), ((coarse.total - coarse.drop) / coarse.drop).abs())
    assert sum_errors(coarse).max() > sum_errors(attribute(small(), X, CLASSES)).max()
