"""The controls: what they do to a network, and that they leave it as it was."""

from __future__ import annotations

import pytest
import torch

from memmod.evaluation import random_gates, without_gates
from memmod.evaluation.controls import mask_logits
from tests.evaluation.helpers import counted, half_forgetting, noisy
from tests.unlearning.problem import trained_base

SELECTIONS = [(0,), (2,), (1, 3)]


class Shifted(torch.nn.Module):
    """Prefers some classes, so that it errs."""

    def __init__(self, base: torch.nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + torch.tensor([1.0, 0.0, 4.0, 0.0])


def test_original_and_logit_mask():
    base, images = Shifted(trained_base()).eval(), noisy(7)
    found = without_gates(base, images, SELECTIONS, 4)
    for row, selection in enumerate(SELECTIONS):
        original, masked = found
        assert (original.acc_forget[row], original.acc_retain[row]) == counted(base, images, selection)
        expected = counted(lambda x, s=selection: mask_logits(base(x), s), images, selection)
        assert (masked.acc_forget[row], masked.acc_retain[row]) == expected
    assert [method.method for method in found] == ["original", "logit mask"]
    assert found[1].acc_forget == (0.0, 0.0, 0.0) and found[0].mean_forget > 0.5
    assert found[1].acc_retain[1] > found[0].acc_retain[1]


@pytest.mark.parametrize("training", [True, False])
def test_the_base_is_run_in_eval_mode_and_left_as_it_was(training):
    images = noisy(7)
    expected = without_gates(trained_base(), images, SELECTIONS, 4)
    base = Shifted(trained_base())
    mean = base.base.features[1].running_mean.clone()
    try:
        base.train(training)
        without_gates(base, images, SELECTIONS, 4)
        assert base.training is base.base.training is training
        assert torch.equal(base.base.features[1].running_mean, mean)
        assert without_gates(base.base, images, SELECTIONS, 4) == expected
    finally:
        base.base.eval()


def test_mask_logits():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    masked = mask_logits(logits, (1, 3))
    assert torch.equal(masked[:, [0, 2]], logits[:, [0, 2]])
    assert (masked[:, [1, 3]] == -torch.inf).all() and logits.isfinite().all()


def test_random_gates_permute_every_row_by_itself():
    wf = half_forgetting()
    before = wf.memory_state()
    shuffled = random_gates(wf, seed=1)
    orders = []
    for name, memory in shuffled.memory_state().items():
        assert torch.equal(memory.sort(1).values, before[name].sort(1).values)
        assert not torch.equal(memory, before[name])
        orders += [tuple(row.tolist()) for row in (memory[:, None] == before[name][..., None]).float().argmax(1)]
    assert len(set(orders)) == len(orders)
    assert all(torch.equal(before[name], memory) for name, memory in wf.memory_state().items())


def test_random_gates_are_seeded():
    wf = half_forgetting()
    one, two, other = (random_gates(wf, seed).memory_state() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
