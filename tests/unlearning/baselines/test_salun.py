"""SalUn's mask: its share, its choice, and what it keeps as it was."""

from __future__ import annotations

import pytest
import torch

from memmod.errors import RunError
from memmod.unlearning.baselines import unlearn_with
from memmod.unlearning.baselines.salun import METHOD, SalUnConfig, forget_gradients, salient
from tests.unlearning.baselines.digits import digits_task
from tests.unlearning.baselines.worked import linear, vectors, worked_task


def test_the_largest_half_over_all_tensors():
    gradients = {"a": torch.tensor([[1.0, -8.0], [0.5, 3.0]]), "b": torch.tensor([-2.0, 0.0])}
    masks = salient(gradients, 0.5)
    assert masks["a"].tolist() == [[False, True], [False, True]]
    assert masks["b"].tolist() == [True, False]


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_the_share_is_exact_even_of_equal_gradients(share):
    masks = salient({"a": torch.zeros(30), "b": torch.ones(70)}, share)
    assert sum(int(mask.sum()) for mask in masks.values()) == round(100 * share)


def test_gradients_are_of_the_sum_over_forgotten_images_in_eval_mode():
    task = worked_task(
        linear([[0.0, 0.0], [0.0, 0.0]]), vectors([[9.0, 9.0]], [1]), vectors([[1, 0], [1, 2]], [0, 0]), 2
    )
    found = forget_gradients(task)["1.weight"]
    assert torch.allclose(found, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))


def test_weights_outside_the_mask_end_bit_by_bit_as_they_began():
    task = digits_task()
    before = [p.detach().clone() for p in task.network.parameters()]
    after = unlearn_with(METHOD, task, SalUnConfig(share=0.3)).network.parameters()
    same = sum(int((a == b).sum()) for a, b in zip(after, before, strict=True))
    total = sum(p.numel() for p in before)
    assert total - round(0.3 * total) <= same < 0.8 * total


@pytest.mark.parametrize("share", [0.0, 1.1, -0.5])
def test_a_share_out_of_range(share):
    with pytest.raises(RunError, match=f"share is {share}; it must be above 0 and at most 1"):
        SalUnConfig(share=share)
