"""SCRUB: its alternation, and its divergence."""

from __future__ import annotations

import math

import pytest
import torch

from memmod.data import TensorSplit
from memmod.errors import RunError
from memmod.unlearning.baselines import unlearn_with
from memmod.unlearning.baselines.scrub import METHOD, ScrubConfig, alternation, divergence
from tests.unlearning.baselines.worked import linear, vectors, worked_task


class Noting(TensorSplit):
    """Writes down, in a list shared with others, when a batch is taken."""

    def __init__(self, split: TensorSplit, name: str, log: list[str]) -> None:
        super().__init__(split.images, split.labels, 1.0, (0.0,), (1.0,))
        self.name, self.log = name, log

    def batch(self, indices):
        self.log.append(self.name)
        return super().batch(indices)


def drawn(order) -> str:
    return "".join("M" if is_max else "." for is_max in order)


def test_the_first_rounds_begin_with_max_steps_and_the_last_has_none():
    assert drawn(alternation(ScrubConfig(epochs=3, msteps=2), 6, 9)) == "MM...MM......"
    assert drawn(alternation(ScrubConfig(epochs=2, msteps=2), 1, 3)) == "M..M.."
    assert drawn(alternation(ScrubConfig(epochs=2, msteps=0), 4, 2)) == ".."


def test_max_steps_take_forgotten_images_and_min_steps_retained_ones():
    log: list[str] = []
    retain = Noting(vectors([[0.0, 1.0], [0.0, 2.0]], [1, 1]), "r", log)
    forget = Noting(vectors([[1.0, 0.0]], [0]), "f", log)
    task = worked_task(linear([[1.0, 0.0], [0.0, 1.0]]), retain, forget, 2)
    unlearn_with(METHOD, task, ScrubConfig(epochs=3, reference_epochs=None, msteps=2))
    assert "".join(log) == "frrfrrrr"


def test_the_divergence_is_of_the_student_from_the_teacher_at_a_temperature():
    teacher = torch.tensor([[2 * math.log(3), 0.0], [0.0, 0.0]])
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert divergence(torch.zeros(2, 2), teacher, 2.0).item() == pytest.approx(expected)
    assert divergence(teacher, teacher, 2.0).item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"msteps": 4}, "msteps is 4; it must be a whole number of the 3 rounds"),
        ({"epochs": 2.5}, "epochs is 2.5; SCRUB alternates whole rounds"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"alpha": -1.0}, "alpha is -1.0; it must be at least 0"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(RunError, match=message):
        ScrubConfig(**changes)
