"""The low-rank update: its rank, its size, what it costs to keep."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from memmod.errors import RunError
from memmod.unlearning.baselines import unlearn_with
from memmod.unlearning.baselines.layer_inputs import layers_of
from memmod.unlearning.baselines.low_rank import METHOD, LowRankConfig, factors_of, relative_size
from tests.unlearning.baselines.digits import digits_task


@pytest.mark.parametrize("rank", [1, 3])
def test_weights_change_by_the_rank_and_nothing_else_changes(rank):
    task = digits_task()
    outcome = unlearn_with(METHOD, task, LowRankConfig(rank=rank))
    before, after = task.network.state_dict(), outcome.network.state_dict()
    weights = {f"{name}.weight" for name in layers_of(task.network)}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == weights
    for name in weights:
        update = (after[name] - before[name]).flatten(1).double()
        values = torch.linalg.svdvals(update)
        assert (values > 1e-4 * values[0]).sum() <= rank
    shapes = [layer.weight.flatten(1).shape for layer in layers_of(task.network).values()]
    assert outcome.bytes == 4 * rank * sum(rows + columns for rows, columns in shapes)


def test_the_update_is_zero_at_first():
    a, b = factors_of(nn.Conv2d(3, 8, 3), 2, torch.Generator().manual_seed(0))
    assert a.shape == (2, 27) and b.shape == (8, 2)
    assert not b.any() and a.std() == pytest.approx(27**-0.5, rel=0.3)


def test_the_relative_size_is_a_mean_over_layers():
    one, two = nn.Linear(2, 1), nn.Linear(1, 1)
    with torch.no_grad():
        one.weight.copy_(torch.tensor([[3.0, 4.0]]))
        two.weight.fill_(2.0)
    found = relative_size({"a": torch.tensor([[5.0, 0.0]]), "b": torch.tensor([[1.0]])}, {"a": one, "b": two})
    assert found.item() == pytest.approx((1 + 0.25) / 2)


@pytest.mark.parametrize(
    ("changes", "message"), [({"rank": 0}, "rank is 0"), ({"rank": 1.5}, "rank is 1.5"), ({"mu": -1.0}, "mu is -1.0")]
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(RunError, match=message):
        LowRankConfig(**changes)
