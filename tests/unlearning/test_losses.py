"""The losses of a batch, for training loops of one's own: their meaning, the trainer's beside them, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from memmod.errors import DataError
from memmod.unlearning import Trainer, UnlearnConfig, unlearn_losses
from memmod.unlearning.round import Round
from tests.unlearning.problem import CLASSES, dataset, modulated, quick


def images(count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    train = dataset().train
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(5))[:count]
    return train.batch(chosen), train.labels[chosen]


def test_half_of_a_batch_forgets_its_own_class_and_the_rest_is_retained() -> None:
    wf, (x, labels) = modulated(), images()
    asked = []

    def spy(rows: torch.Tensor, forget: torch.Tensor) -> torch.Tensor:
        asked.append((rows, forget))
        return wf(rows, forget=forget)

    config = UnlearnConfig(objective="negative-ce", lambdas=(2.0, 3.0, 0.5), expansion=2, max_set_size=2, margin=0.25)
    losses = unlearn_losses(wf, x, labels, config, torch.Generator().manual_seed(0), forward=spy)
    ((rows, selection),) = asked
    assert torch.equal(rows, torch.cat((x[:4], x[4:].repeat_interleave(2, 0))))
    own = torch.cat((labels[:4], labels[4:].repeat_interleave(2)))
    forget = (selection == own[:, None]).any(1)
    assert forget.tolist() == [True] * 4 + [False] * 8 and selection.shape == (12, 2)
    logits = wf(rows, forget=selection)
    for row, classes in enumerate(selection.tolist()):
        for c in set(classes) - {-1}:
            logits[row, c] += 0.25
    ce = F.cross_entropy(logits, own, reduction="none")
    closed = torch.cat([1 - gates.flatten() for gates in wf.gates().values()]).mean()
    expected = 2 * ce[4:].mean() + 3 * -ce[:4].clamp_max(5).mean() + 0.5 * closed
    torch.testing.assert_close(losses.total, expected)
    torch.testing.assert_close((losses.retain, losses.gates), (ce[4:].mean(), closed))


def test_distillation_is_towards_the_base_in_its_own_rows() -> None:
    wf, (x, labels) = modulated(), images()
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.fill_(20.0)
    # Open gates are the base: nothing to learn for what is retained, but for the masked class.
    losses = unlearn_losses(wf, x, labels, UnlearnConfig(lambdas=(1, 1, 1)), torch.Generator().manual_seed(0))
    assert losses.retain < 0.05 < losses.forget and losses.gates < 1e-6


@pytest.mark.parametrize("objective", ["inverse-ce", "masked-distillation"])
def test_a_loop_of_ones_own_does_what_the_trainer_does(objective: str) -> None:
    config = quick(objective=objective, statistics_fraction=0.0, margin=1.0)
    round_ = Round(Trainer(modulated(), dataset(), config))
    wf, data, start = modulated(), round_.trainer.train, modulated().memory_state()
    generator = torch.Generator()
    generator.set_state(round_.generator.get_state())
    optimiser = torch.optim.Adam(wf.memory_parameters(), config.lr)
    for _ in range(5):
        theirs = round_.advance()
        chosen = round_.sampler.mixed(config.batch_size, generator)
        losses = unlearn_losses(wf, data.batch(chosen), data.labels[chosen], config, generator)
        optimiser.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(wf.memory_parameters(), config.clip)
        optimiser.step()
        torch.testing.assert_close(torch.stack(losses), torch.tensor(theirs))
    for name, memory in round_.wf.named_memories():
        # The trainer has the base's logits in advance, in batches of another size.
        torch.testing.assert_close(dict(wf.named_memories())[name], memory)
        assert not torch.equal(memory, start[name])


@pytest.mark.parametrize(
    ("count", "labels", "words"),
    [
        (1, torch.tensor([1]), "two images or more"),
        (3, torch.tensor([0, 1]), "there are 3 images and labels of torch.int64 and shape .2,."),
        (2, torch.tensor([0.0, 1.0]), "torch.float32"),
        (2, torch.tensor([[0], [1]]), "shape .2, 1."),
        (2, torch.tensor([0, CLASSES]), "labels from 0 to 4; the model's classes are 0 to 3"),
        (2, torch.tensor([-1, 0]), "labels from -1"),
    ],
)
def test_what_is_no_batch_is_refused(count: int, labels: torch.Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words):
        unlearn_losses(modulated(), images(count)[0], labels, UnlearnConfig(), torch.Generator())
