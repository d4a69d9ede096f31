"""Label expansion: who forgets what."""

from __future__ import annotations

import pytest
import torch

from memmod.errors import SelectionError
from memmod.unlearning.expansion import expand


def draw(batch: int = 64, classes: int = 10, repeats: int = 1, size: int = 3, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (batch,), generator=generator)
    return labels, expand(labels, classes, repeats, size, generator)


def as_sets(selection: torch.Tensor) -> list[list[int]]:
    return [[c for c in row if c != -1] for row in selection.tolist()]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("batch", "classes", "repeats", "size"),
    [(64, 10, 1, 1), (64, 10, 1, 3), (63, 10, 4, 3), (64, 4, 1, 3), (32, 2, 2, 1), (3, 5, 7, 4), (2, 1000, 1, 3)],
)
def test_forget_samples_select_their_own_class_and_retained_ones_never(batch, classes, repeats, size, seed):
    labels, expansion = draw(batch, classes, repeats, size, seed)
    forgotten = batch // 2
    assert expansion.selection.shape == (forgotten + repeats * (batch - forgotten), size)
    assert expansion.selection.dtype == expansion.rows.dtype == torch.int64
    assert expansion.forget.tolist() == [i < forgotten for i in range(len(expansion.rows))]
    assert expansion.rows.bincount(minlength=batch).tolist() == [1] * forgotten + [repeats] * (batch - forgotten)
    for row, chosen, forget in zip(expansion.rows, as_sets(expansion.selection), expansion.forget, strict=True):
        assert len(chosen) == len(set(chosen)) and 1 <= len(chosen) <= size
        assert all(0 <= c < classes for c in chosen)
        assert (labels[row].item() in chosen) == forget.item()


def test_padding_comes_last():
    _, expansion = draw(size=4)
    padding = expansion.selection == -1
    assert (padding.long().diff(dim=1) >= 0).all()


@pytest.mark.parametrize(("size", "shares"), [(1, [1]), (2, [0.5, 0.5]), (3, [0.5, 0.25, 0.25])])
def test_half_are_single_classes_and_the_other_sizes_as_likely(size, shares):
    _, expansion = draw(batch=6000, size=size)
    for kind in (expansion.forget, ~expansion.forget):
        sizes = (expansion.selection[kind] != -1).sum(1).bincount()[1:] / kind.sum()
        torch.testing.assert_close(sizes, torch.tensor(shares, dtype=sizes.dtype), atol=0.03, rtol=0)


def test_the_other_classes_are_uniform():
    generator = torch.Generator().manual_seed(0)
    labels = torch.full((8000,), 2)
    retained = expand(labels, 5, 1, 3, generator)
    retained = retained.selection[~retained.forget]
    counts = retained[retained >= 0].bincount(minlength=5)
    assert counts[2] == 0
    expected = counts.sum() / 4
    assert ((counts[[0, 1, 3, 4]] - expected).abs() < 0.05 * expected).all()


def test_a_repeated_sample_gets_another_class_each_time():
    _, expansion = draw(batch=32, classes=5, repeats=4, size=1)
    for row in expansion.rows[~expansion.forget].unique():
        assert expansion.selection[expansion.rows == row, 0].unique().numel() == 4


def test_the_generator_decides_everything():
    assert all(torch.equal(a, b) for a, b in zip(draw(seed=5)[1], draw(seed=5)[1], strict=True))
    assert not torch.equal(draw(seed=5)[1].selection, draw(seed=6)[1].selection)


@pytest.mark.parametrize("size", [0, 4, 9])
def test_sets_that_cannot_leave_a_class_out(size):
    with pytest.raises(SelectionError, match=f"up to {size} classes.*of 4.*between 1 and 3"):
        draw(classes=4, size=size)
