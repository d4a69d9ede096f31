"""Statistics taken anew: the same as BatchNorm in training mode, over batches of all classes."""

from __future__ import annotations

import copy

import pytest
import torch

from memmod.data import TensorSplit
from memmod.errors import ModelError
from memmod.evaluation import evaluate, restandardised
from tests.evaluation.helpers import half_forgetting, noisy
from tests.unlearning.problem import modulated, trained_base


def crooked(images_per_class: int = 15) -> TensorSplit:
    """Images whose statistics are not those of training, so that taking them anew changes predictions."""
    plain = noisy(images_per_class)
    return TensorSplit(plain.images * 2.5 + 3.0, plain.labels, 1.0, (0.0,), (1.0,))


def test_with_open_gates_it_is_batchnorm_in_training_mode():
    wf, images = modulated(), crooked()
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.fill_(40.0)
    base = copy.deepcopy(trained_base()).train()
    with torch.no_grad():
        right = base(images.batch(torch.arange(len(images)))).argmax(1) == images.labels
    found = restandardised(wf, images)
    for c in range(4):
        own = images.labels == c
        assert found.acc_forget[c] == pytest.approx(right[own].double().mean().item())
        assert found.acc_retain[c] == pytest.approx(right[~own].double().mean().item())
    assert found.acc_retain != evaluate(wf, images).acc_retain


def test_the_gates_act_on_standardised_units():
    wf, images = half_forgetting(), crooked()
    x = images.batch(torch.arange(len(images)))
    found = restandardised(wf, images, [(0,), (1, 2)])
    for row, (selection, forget) in enumerate((((0,), 0), ((1, 2), {1, 2}))):
        with torch.no_grad(), wf.batch_statistics():
            right = wf(x, forget=forget).argmax(1) == images.labels
        own = torch.isin(images.labels, torch.tensor(selection))
        assert found.acc_forget[row] == pytest.approx(right[own].double().mean().item())
        assert found.acc_retain[row] == pytest.approx(right[~own].double().mean().item())
    assert found.acc_forget != evaluate(wf, images, [(0,), (1, 2)]).acc_forget


def test_batches_hold_all_classes(monkeypatch):
    images, taken = crooked(), []
    monkeypatch.setattr(images, "batch", lambda part, take=images.batch: (taken.append(part), take(part))[1])
    restandardised(half_forgetting(), images, batch_size=20)
    assert torch.cat(taken).sort().values.tolist() == list(range(60))
    assert all(images.labels[part].unique().numel() == 4 for part in taken)


def test_a_network_without_batchnorm():
    with pytest.raises(ModelError, match="no unit normalised by BatchNorm"):
        restandardised(half_forgetting(norm=False), crooked())
