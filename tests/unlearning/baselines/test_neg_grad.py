"""NegGrad and NegGrad+, against steps worked by hand."""

from __future__ import annotations

import pytest
import torch

from memmod.errors import RunError
from memmod.unlearning.baselines import unlearn_with
from memmod.unlearning.baselines.neg_grad import METHOD, METHOD_PLUS, NegGradConfig, NegGradPlusConfig, weighed
from tests.unlearning.baselines.worked import linear, vectors, weight_of, worked_task

# of zero weights the softmax is (.5, .5): the gradient of CE is (p - onehot) xᵀ
FORGET, RETAIN = vectors([[1.0, 0.0]], [0]), vectors([[0.0, 1.0]], [1])


def task():
    return worked_task(linear([[0.0, 0.0], [0.0, 0.0]]), RETAIN, FORGET, 2)


def test_one_step_of_neg_grad_ascends():
    outcome = unlearn_with(METHOD, task(), NegGradConfig(epochs=1, lr=0.1))
    assert torch.allclose(weight_of(outcome.network), torch.tensor([[-0.05, 0.0], [0.05, 0.0]]))


def test_one_step_of_neg_grad_plus_weighs_both():
    config = NegGradPlusConfig(epochs=1, reference_epochs=None, lr=0.1, alpha=0.75)
    outcome = unlearn_with(METHOD_PLUS, task(), config)
    expected = torch.tensor([[-0.0125, -0.0375], [0.0125, 0.0375]])
    assert torch.allclose(weight_of(outcome.network), expected)


def test_the_weighed_loss():
    assert weighed(torch.tensor(2.0), torch.tensor(3.0), 0.9).item() == pytest.approx(1.5)


def test_alpha_out_of_range():
    with pytest.raises(RunError, match="alpha is 1.2; it must be between 0 and 1"):
        NegGradPlusConfig(alpha=1.2)
