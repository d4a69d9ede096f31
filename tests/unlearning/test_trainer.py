"""The trainer: that it unlearns, what it touches, what it warns of, and how it fails."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch

from memmod.data import Split, TensorSplit
from memmod.errors import DataError, ModelError, RunError
from memmod.evaluation import evaluate
from memmod.files.checkpoint import Checkpoint
from memmod.files.state_hash import state_sha256
from memmod.model import ModulateConfig
from memmod.unlearning import Trainer, UnlearnConfig, objective_names
from memmod.unlearning import objectives as objectives_module
from memmod.unlearning.objectives import Objective, Terms
from tests.unlearning.problem import NAMES, dataset, modulated, quick, split


def fit(wf, config, **options):
    return Trainer(wf, dataset(), config, **options).fit()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


class Untouchable(Split):
    labels = torch.arange(4)

    def batch(self, indices):
        raise AssertionError("the trainer looked at the test split")


@pytest.mark.parametrize("norm", [True, False])
def test_every_class_is_unlearned_in_one_round(norm):
    wf, test = modulated(norm), dataset().test
    before = evaluate(wf, test)
    config = UnlearnConfig(steps=100, lr=0.3, batch_size=64, eval_every=50)
    result = fit(wf, config)
    after = evaluate(wf, test)
    assert before.worst_forget > 0.9
    assert after.worst_forget <= 0.05
    assert after.mean_retain >= before.mean_retain - 0.03
    assert result.warnings == (), "the state that is kept has nothing to warn of"
    assert [e.step for e in result.history] == [0, 50, 100]
    assert result.best in result.history and result.seconds > 0


@pytest.mark.slow
@pytest.mark.parametrize("objective", objective_names())
def test_every_objective_trains(objective):
    wf = modulated()
    # negative-ce, capped for each sample, forgets one class after the other: 0.25 after 400 steps of 32 images.
    result = fit(wf, quick(objective=objective, steps=200, batch_size=64, lr=0.2, eval_every=100))
    assert result.history[-1].mean_forget < result.history[0].mean_forget - 0.5
    assert json.loads(json.dumps(result.to_dict()))["best"]["step"] == result.best.step


def test_only_the_memories_change_and_the_test_split_is_not_read():
    wf = modulated()
    base, memories, shared = state_sha256(wf.unload()), wf.memory_state(), torch.get_rng_state()
    Trainer(wf, replace(dataset(), test=Untouchable()), quick()).fit()
    assert state_sha256(wf.unload()) == base
    assert not any(torch.equal(memories[name], memory) for name, memory in wf.memory_state().items())
    assert torch.equal(torch.get_rng_state(), shared)


def test_a_seed_decides_every_bit():
    one, two, other = modulated(), modulated(), modulated()
    first = fit(one, quick())
    torch.randn(5)
    second = fit(two, quick())
    fit(other, quick(seed=1))
    assert same(one.memory_state(), two.memory_state())
    assert first.history == second.history
    assert not same(one.memory_state(), other.memory_state())


def test_the_validation_split_is_held_out_and_of_every_class():
    trainer = Trainer(modulated(), dataset(), quick(validation_images=20))
    assert trainer.train.labels.bincount().tolist() == [48] * 4
    assert trainer.validation.labels.bincount().tolist() == [5] * 4
    seen = {tuple(image.flatten().tolist()) for image in trainer.train.batch(torch.arange(len(trainer.train)))}
    held = trainer.validation.batch(torch.arange(len(trainer.validation)))
    assert not any(tuple(image.flatten().tolist()) in seen for image in held)


def test_a_given_validation_split_is_used():
    given = split(7, seed=5)
    trainer = Trainer(modulated(), dataset(), quick(), validation=given)
    assert trainer.validation is given and len(trainer.train) == len(dataset().train)


class Spy:
    """Records each selection a model is run with while it has gradients, and whether statistics are in the loop."""

    def __init__(self, wf, monkeypatch):
        self.runs = []
        run = type(wf).forward

        def forward(model, x, forget=None):
            if torch.is_grad_enabled():
                self.runs.append((forget, model.state.batch_statistics, len(x)))
            return run(model, x, forget=forget)

        monkeypatch.setattr(type(wf), "forward", forward)


def test_half_of_the_steps_have_one_class_and_the_batchs_statistics(monkeypatch):
    wf = modulated()
    spy = Spy(wf, monkeypatch)
    fit(wf, quick(steps=12, batch_size=16))
    assert [statistics for _, statistics, _ in spy.runs] == [False, True] * 6
    for forget, statistics, _ in spy.runs:
        assert isinstance(forget, int) if statistics else forget.shape == (16, 3)


def test_networks_without_batchnorm_have_no_such_steps(monkeypatch):
    wf = modulated(norm=False)
    spy = Spy(wf, monkeypatch)
    fit(wf, quick(steps=4))
    assert len(spy.runs) == 4 and not any(statistics for _, statistics, _ in spy.runs)


def test_expansion_repeats_the_retained_half(monkeypatch):
    wf = modulated()
    spy = Spy(wf, monkeypatch)
    fit(wf, quick(steps=2, batch_size=16, expansion=4, statistics_fraction=0.0))
    assert [samples for _, _, samples in spy.runs] == [8 + 4 * 8] * 2


@pytest.mark.parametrize("statistics", [0.0, 1.0])
def test_the_loss_sees_selected_logits_raised_by_the_margin(monkeypatch, statistics):
    batches = {}
    for margin in (0.0, 4.0):
        seen = batches[margin] = []
        terms = objectives_module.get_objective("negative-ce").terms

        def spying(batch, seen=seen, terms=terms):
            seen.append(batch)
            return terms(batch)

        monkeypatch.setitem(objectives_module._objectives, "spy", Objective("spy", spying, False))
        fit(modulated(), quick(steps=1, objective="spy", margin=margin, statistics_fraction=statistics))
    (plain,), (pushed,) = batches[0.0], batches[4.0]
    assert torch.equal(plain.selection, pushed.selection)
    selected = objectives_module.selected_classes(plain.selection, plain.logits.shape[1])
    assert selected.any()
    assert torch.equal(pushed.logits, plain.logits + 4.0 * selected)


class Counting(TensorSplit):
    """Counts how many images are decoded."""

    decoded = 0

    def batch(self, indices):
        Counting.decoded += len(indices)
        return super().batch(indices)

    def subset(self, indices):
        return Counting(self.images[indices], self.labels[indices], *self._normalisation)


@pytest.mark.parametrize(("steps", "in_advance"), [(10, 192), (2, 0)])
def test_frozen_logits_cost_no_more_than_one_pass(steps, in_advance):
    data, whole = dataset(), dataset().train
    data = replace(data, train=Counting(whole.images, whole.labels, *whole._normalisation))
    trainer = Trainer(modulated(), data, quick(steps=steps, batch_size=32))
    Counting.decoded = 0
    trainer.fit()
    assert Counting.decoded == steps * 32 + in_advance + len(trainer.validation)


def test_two_classes_are_enough():
    wf = modulated(classes=2)
    result = Trainer(wf, dataset(2), quick(steps=50, lr=0.3)).fit()
    assert result.best.worst_forget < 0.2


def test_the_best_state_is_kept_not_the_last(monkeypatch):
    wf, states = modulated(), {}
    scores = iter([(0.9, 0.9), (0.1, 0.7), (0.1, 0.8), (0.3, 0.9)])

    def accuracies(self, model):
        worst, retain = next(scores)
        states[len(states)] = model.memory_state()
        return type("Accuracies", (), {"acc_forget": (0.0, worst, 0.0, 0.0), "mean_retain": retain})

    monkeypatch.setattr("memmod.evaluation.sampled.SampledSplit.accuracies", accuracies)
    result = fit(wf, quick(steps=15))
    assert result.best.step == 10
    assert same(wf.memory_state(), states[2]) and not same(states[2], states[3])


def test_over_unlearning_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        result = fit(modulated(), quick(objective="kl-uniform", steps=30, lr=0.3, lambdas=(0.0, 1.0, 0.0)))
    assert any("over-unlearning" in warning for warning in result.warnings)
    assert sum("over-unlearning" in record.message for record in caplog.records) == 1


def test_a_lagging_class_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        result = fit(modulated(), quick(lambdas=(1.0, 0.0, 0.0)))
    assert any("lagging" in warning and "'ant'" in warning for warning in result.warnings)
    assert any("lagging" in record.message for record in caplog.records)


def failing_at(step: int, monkeypatch) -> None:
    """Make the objective's loss NaN at that step."""
    calls = []
    real = objectives_module.get_objective("masked-distillation")

    def terms(batch):
        calls.append(1)
        found = real.terms(batch)
        return Terms(found.retain * torch.nan, found.forget) if len(calls) == step else found

    monkeypatch.setitem(objectives_module._objectives, "masked-distillation", Objective("failing", terms, True))


def test_a_loss_that_is_not_finite_loses_nothing(monkeypatch, tmp_path):
    failing_at(14, monkeypatch)
    wf = modulated()
    with pytest.raises(RunError, match=r"not finite at step 14 of 30 \(total nan, retain nan.*best state, of step \d+"):
        fit(wf, quick(steps=30), run_folder=tmp_path)
    checkpoint = Checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert checkpoint.progress["step"] == 10
    assert same(checkpoint.tensors["best"], wf.memory_state())
    assert all(memory.isfinite().all() for memory in wf.memory_state().values())


def test_a_base_that_gives_no_numbers_fails_at_once():
    data = dataset()
    images = data.train.images.clone()
    images[::2] = torch.inf
    broken = replace(data, train=TensorSplit(images, data.train.labels, 1.0, (0.0,), (1.0,)))
    wf = modulated()
    before = wf.memory_state()
    with pytest.raises(RunError, match="not finite at step 1 of 12.*step 0, is kept in the model"):
        Trainer(wf, broken, quick()).fit()
    assert same(before, wf.memory_state())


def test_a_class_missing_from_the_data():
    data = dataset()
    kept = (data.train.labels != 2).nonzero().flatten()
    with pytest.raises(DataError, match=r"prototypes has no images of class 2 \('cow'\).*add them"):
        Trainer(modulated(), replace(data, train=data.train.subset(kept)))
    with pytest.raises(DataError, match="validation split of prototypes has no images of class 2"):
        Trainer(modulated(), data, validation=data.train.subset(kept))


def test_labels_out_of_range():
    data = dataset()
    labels = data.train.labels + 1
    with pytest.raises(DataError, match="labels from 1 to 4; they must lie in 0 to 3"):
        Trainer(modulated(), replace(data, train=TensorSplit(data.train.images, labels, 1.0, (0.0,), (1.0,))))


def test_data_of_another_number_of_classes():
    with pytest.raises(DataError, match="prototypes has 3 classes, but the model forgets 4"):
        Trainer(modulated(), replace(dataset(), class_names=NAMES[:3]))


def test_hard_gates_cannot_be_trained():
    with pytest.raises(ModelError, match="'hard' have no gradient"):
        Trainer(modulated(config=ModulateConfig(gate="hard")), dataset())


def test_progress_tells_every_step_and_evaluation():
    seen = []
    result = Trainer(modulated(), dataset(), quick(), progress=seen.append).fit()
    steps = [progress for progress in seen if progress.losses is not None]
    assert [progress.step for progress in steps] == list(range(1, 13)) and {p.steps for p in seen} == {12}
    assert all(progress.losses.total > 0 for progress in steps)
    evaluations = [progress.evaluation for progress in seen if progress.losses is None]
    assert tuple(evaluations) == result.history
