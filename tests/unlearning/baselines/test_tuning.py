"""The search over a grid: what it trains on, what it chooses, what it does with settings that diverge."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from memmod.errors import RunError
from memmod.unlearning.baselines import Diverged, Method, Row, tune
from memmod.unlearning.baselines.tuning import accuracy, best
from tests.unlearning.baselines.digits import CLASSES, digits_task


@dataclass(frozen=True)
class Answer:
    """What a network of this setting always answers; None diverges."""

    answer: int | None = 0
    unused: int = 0


class Always(torch.nn.Module):
    def __init__(self, answer: int) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return torch.eye(CLASSES)[[self.answer]].repeat(len(x), 1)


def always(*answers, seen=None) -> Method:
    def run(task, config):
        if seen is not None:
            seen.append(task)
        if config.answer is None:
            raise Diverged("it diverged")
        return Always(config.answer)

    return Method("always", "none", Answer, run, grid={"answer": answers})


def test_the_setting_that_forgets_and_keeps_most_is_chosen():
    # class 3 is forgotten; a network that always says 3 forgets nothing, all others forget and keep one class
    tuned = tune(always(3, 5, 7), digits_task())
    assert [row.config.answer for row in tuned.table] == [3, 5, 7]
    assert [row.acc_forget for row in tuned.table] == [1.0, 0.0, 0.0]
    assert tuned.config == max(tuned.table[1:], key=lambda row: row.acc_retain).config
    assert 0 < tuned.table[1].acc_retain < 0.2 and tuned.seconds > 0


def test_a_setting_that_diverges_is_a_row_and_is_not_chosen():
    tuned = tune(always(None, 5), digits_task())
    assert [row.diverged for row in tuned.table] == ["it diverged", None]
    assert tuned.table[0].acc_forget is None and tuned.config.answer == 5
    with pytest.raises(Diverged, match="always diverged with every setting of its grid.*it diverged"):
        tune(always(None, None), digits_task())


def test_a_tenth_of_every_class_is_held_out_of_what_the_method_sees():
    seen: list = []
    task = digits_task()
    tune(always(5, 6, seen=seen), task, seed=4)
    assert len(seen) == 2
    for run in seen:
        for part, whole in ((run.retain, task.retain), (run.forget, task.forget)):
            left = torch.bincount(part.labels, minlength=CLASSES).double()
            all_ = torch.bincount(whole.labels, minlength=CLASSES).double()
            assert ((all_ - left)[all_ > 0] - 0.1 * all_[all_ > 0]).abs().max() <= 0.5
    assert torch.equal(seen[0].retain.images, seen[1].retain.images)


def test_several_tasks_decide_by_their_means():
    # a network that always says 5 forgets nothing where class 5 is forgotten
    seen: list = []
    tuned = tune(always(5, 3, 7, seen=seen), digits_task((3,)), digits_task((5,)))
    assert [row.acc_forget for row in tuned.table] == [0.5, 0.5, 0.0]
    assert tuned.config.answer == 7
    assert [task.classes for task in seen] == [(3,), (5,)] * 3
    single = [tune(always(7), digits_task((c,))).table[0].acc_retain for c in (3, 5)]
    assert tuned.table[2].acc_retain == pytest.approx(sum(single) / 2)


def test_a_setting_that_diverges_on_one_task_is_not_chosen():
    def run(task, config):
        if config.answer == 5 and task.classes == (8,):
            raise Diverged("on class 8")
        return Always(config.answer)

    method = Method("some", "none", Answer, run, grid={"answer": (5, 7)})
    tuned = tune(method, digits_task((3,)), digits_task((8,)))
    assert [row.diverged for row in tuned.table] == ["on class 8", None] and tuned.config.answer == 7


def rows(*figures) -> list[Row]:
    return [Row(number, *figure, 0.0) for number, figure in enumerate(figures)]


def test_the_rule():
    assert best("m", rows((0.02, 0.99), (0.01, 0.80), (0.0, 0.85), (0.0, 0.7)), 0.8).config == 2
    assert best("m", rows((0.3, 0.9), (0.1, 0.8), (0.1, 0.85)), 0.8).config == 2
    assert best("m", rows((0.0, 0.5), (0.01, 0.5)), 0.5).config == 0


def test_a_ruined_network_is_chosen_only_among_such():
    # of .9 a tenth is .09: below .81 a network is ruined
    assert best("m", rows((0.0, 0.80), (0.2, 0.82), (0.3, 0.9)), 0.9).config == 1
    assert best("m", rows((0.0, 0.11), (0.0, 0.4), (0.2, 0.7)), 0.9).config == 1


def test_a_method_without_a_grid_has_its_defaults():
    method = Method("m", "none", Answer, lambda _task, _config: Always(1))
    assert tune(method, digits_task()).config == Answer()


def test_every_combination_of_the_grid_is_a_setting():
    method = Method("m", "none", Answer, None, grid={"answer": (1, 2), "unused": (3, 4, 5)})
    assert [(c.answer, c.unused) for c in method.settings()] == [(a, u) for a in (1, 2) for u in (3, 4, 5)]


def test_a_grid_over_an_unknown_field():
    with pytest.raises(RunError, match="the grid of m varies answers, lr, which its settings have not"):
        Method("m", "none", Answer, None, grid={"lr": (1,), "answers": (2,), "answer": (3,)})


def test_accuracy_is_a_share_of_images():
    task = digits_task()
    assert accuracy(task, Always(3), task.forget) == 1.0
    assert accuracy(task, Always(3), task.retain) == 0.0
    with pytest.raises(RunError, match="no images to measure an accuracy on"):
        accuracy(task, Always(3), task.forget.subset(torch.arange(0)))
