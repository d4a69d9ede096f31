"""One run: nothing of the caller's changes, and what comes back is checked."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch

from memmod.errors import RunError
from memmod.unlearning.baselines import Diverged, Method, get_method, unlearn_with
from memmod.unlearning.baselines.fine_tuning import FineTuningConfig
from tests.unlearning.baselines.digits import digits, digits_task, of_classes


@dataclass(frozen=True)
class NoConfig:
    value: int = 0


def method(run) -> Method:
    return Method("trial", "none", NoConfig, run)


def spoiled(task, _config):
    with torch.no_grad():
        task.network.head.weight[0, 0] = float("nan")
    return task.network


def test_weights_that_are_not_finite_are_named():
    with pytest.raises(Diverged, match="trial diverged: head.weight holds values that are not finite"):
        unlearn_with(method(spoiled), digits_task())


def test_a_method_gets_a_copy_that_can_be_trained_even_of_a_frozen_network():
    frozen = copy.deepcopy(digits_task().network).requires_grad_(False)
    before = copy.deepcopy(frozen.state_dict())
    outcome = unlearn_with(get_method("fine-tuning"), digits_task(network=frozen))
    assert all(torch.equal(before[name], value) for name, value in frozen.state_dict().items())
    assert not torch.equal(before["head.weight"], outcome.network.head.weight)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.grad is None for p in outcome.network.parameters())


def test_random_numbers_of_the_method_are_the_tasks_and_the_callers_stay():
    drawn = []

    def draws(task, _config):
        drawn.append(torch.rand(3))
        return task.network

    for seed in (1, 1, 2):
        state = torch.get_rng_state()
        unlearn_with(method(draws), digits_task(seed=seed))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_a_run_inside_no_grad_trains():
    with torch.no_grad():
        outcome = unlearn_with(get_method("fine-tuning"), digits_task())
    assert not torch.equal(outcome.network.head.weight, digits_task().network.head.weight)


def test_whole_networks_cost_their_state():
    outcome = unlearn_with(method(lambda task, _config: task.network), digits_task())
    state = digits_task().network.state_dict().values()
    assert outcome.bytes == sum(len(bytes(value.numpy().tobytes())) for value in state)
    assert outcome.seconds >= 0


def test_the_config_of_another_method():
    with pytest.raises(RunError, match="scrub takes a ScrubConfig, not a FineTuningConfig"):
        unlearn_with(get_method("scrub"), digits_task(), FineTuningConfig())


@pytest.mark.parametrize("classes", [(), (10,), (-1,), tuple(range(10))])
def test_classes_that_cannot_be_forgotten(classes):
    task = digits_task()
    with pytest.raises(RunError, match="name some of the classes 0 to 9 to forget, and leave at least one"):
        unlearn_with(get_method("nothing"), digits_task(classes=classes, retain=task.retain, forget=task.forget))


@pytest.mark.parametrize(("which", "what"), [("forget", "forgotten"), ("retain", "retained")])
def test_a_split_without_images(which, what):
    empty = of_classes(digits().train, (), True)
    with pytest.raises(RunError, match=f"the task has no {what} images"):
        unlearn_with(get_method("nothing"), digits_task(**{which: empty}))
