"""Rivals of an erased network: what each begins with, what it is trained on, and that it is trained once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from memmod.data import load_data
from memmod.errors import RunError
from memmod.evaluation.audit.outputs import ACCURACY
from memmod.runs import commands
from memmod.runs.audits import AuditOptions, audit_run, baked_network
from memmod.runs.erase import Erased, EraseOptions, EraseSettings, erase_run, restore_erased
from memmod.runs.kept import each_trained, trained
from memmod.runs.restore import restore_unlearned
from memmod.runs.rivals import BAKED, ERASED, FINE_TUNING, FROM_SCRATCH, Erasure, fine_tuning, from_scratch, recipe
from memmod.training import accuracies
from memmod.zoo import load_base

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
UNLEARNING = {"steps": 10, "eval_every": 10, "batch_size": 32, "max_set_size": 1}
OPTIONS = AuditOptions(seeds=2, quick=True)


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rivals")
    base = commands.train(folder / "base", commands.DataOptions(), "vgg", changes={"epochs": 4, "seed": 2})
    unlearned = commands.unlearn(base, folder / "unlearned", commands.UnlearnOptions("fast", UNLEARNING))
    options = EraseOptions({"budget": 0.9, "batch_size": 16, "seed": 5})
    erase_run(unlearned, [3, 8], load_data("digits"), folder / "erased", options)
    return folder


@pytest.fixture
def erased(folder: Path) -> Erased:
    return restore_erased(folder / "erased")


def test_they_see_as_many_images_as_the_erasure(erased, data):
    plan = erased.plan(data)
    assert plan.steps == erased.run.settings["steps"] and plan.images == erased.metrics["images"]
    tuned, scratch = fine_tuning(erased.base, plan), from_scratch(erased.base, plan)
    assert tuned.plan.images == pytest.approx(plan.images, abs=tuned.plan.training.batch_size)
    base = erased.base.meta["training"]
    own = tuned.plan.training
    assert (own.lr, own.batch_size, own.weight_decay) == (base["lr"], base["batch_size"], base["weight_decay"])
    assert scratch.plan == replace(plan, reset=()) and tuned.plan.reset == ()
    assert (plan.augmented, tuned.plan.augmented) == (0.85, 1.0)
    assert own.seed == scratch.plan.training.seed == 5
    assert tuned.plan.retained is scratch.plan.retained is plan.retained
    assert set(plan.retained.train.labels.tolist()) == set(range(10)) - {3, 8}


def test_settings_without_a_share_of_augmented_steps_mean_all(erased):
    settings = {name: value for name, value in erased.run.settings.items() if name != "augmented"}
    assert settings != erased.run.settings
    assert msgspec.convert(settings, EraseSettings).config().augmented == 1.0


def test_fine_tuning_begins_with_the_original_and_the_other_with_nothing(erased, data):
    plan = erased.plan(data)
    original, fresh = erased.base.model.state_dict(), erased.base.fresh(10_005).state_dict()
    for rival, expected in ((fine_tuning(erased.base, plan), original), (from_scratch(erased.base, plan), fresh)):
        first, second = rival.start(), rival.start()
        assert all(torch.equal(value, expected[name]) for name, value in first.state_dict().items())
        # one is trained, the original stays as it is
        assert not {p.data_ptr() for p in first.parameters()} & {p.data_ptr() for p in second.parameters()}


def test_an_erasure_of_the_same_plan_is_the_run_s_network(erased, data, tmp_path):
    def start():
        return baked_network(erased.unlearned, (3, 8), data, 0.3)

    kept = trained(recipe(Erasure(ERASED, start, erased.plan(data)), erased.base, (3, 8), tmp_path), data, CPU)
    for name, value in erased.network.state_dict().items():
        assert torch.equal(value, kept.network.state_dict()[name]), name
    assert kept.metrics["seconds"] > 0


def test_a_rival_is_trained_once_and_kept_before_it_is_measured(erased, data, tmp_path, monkeypatch):
    from memmod.runs import kept as module

    made = recipe(from_scratch(erased.base, erased.plan(data)), erased.base, (3, 8), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "accuracies", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            trained(made, data, CPU)
    assert (made.path / "base.safetensors").exists() and not made.finished
    steps = []
    (found,) = each_trained([made], data, CPU, steps.append)
    # the checkpoint of the last step was there
    assert steps == [] and made.finished and not list(made.path.glob("checkpoint*"))
    assert found.metrics["class_accuracy"] == accuracies(load_base(made.path)[0], data.test, 10)[1]
    assert found.metrics["acc_forget"] == [0.0, 0.0]


def test_what_a_rival_depends_on_is_in_its_folder_s_name(erased, data, tmp_path):
    plan, base = erased.plan(data), erased.base
    other = replace(plan, training=replace(plan.training, seed=6))
    moved = replace(base, model=base.fresh(1))
    plans = [fine_tuning(base, plan), from_scratch(base, plan), fine_tuning(base, other), from_scratch(base, other)]
    made = [recipe(one, base, (3, 8), tmp_path) for one in plans] + [
        recipe(fine_tuning(moved, plan), moved, (3, 8), tmp_path),
        recipe(from_scratch(base, replace(plan, steps=plan.steps + 1)), base, (3, 8), tmp_path),
    ]
    assert len({one.path for one in made}) == 6
    # nothing of the base's weights is in a network from scratch
    assert recipe(from_scratch(moved, plan), moved, (3, 8), tmp_path).path == made[1].path
    (made[0].path / "config.json").parent.mkdir()
    (made[0].path / "config.json").write_text((erased.run.path / "config.json").read_text())
    with pytest.raises(RunError, match="run of `memmod erase`"):
        trained(made[0], data, CPU)


def test_the_card_has_their_columns_and_judges_the_audited_network_alone(erased, data):
    estimates, rivals = [], []
    audited = audit_run(
        erased, [3, 8], data, OPTIONS, attacks=(ACCURACY,), on_estimate=estimates.append, on_rival=rivals.append
    )
    card = json.loads((audited.folder / "audit.json").read_text())
    assert card["others"] == [BAKED, FINE_TUNING, FROM_SCRATCH]
    assert estimates[0].rivals == 2 and estimates[0].rival_seconds > 0
    assert {(step.number, step.count) for step in rivals} == {(1, 2), (2, 2)}
    forget = card["rows"][0]
    baked = accuracies(baked_network(erased.unlearned, (3, 8), data, 0.3), data.test, 10)[1]
    counts = torch.bincount(data.test.labels).tolist()
    expected = (baked[3] * counts[3] + baked[8] * counts[8]) / (counts[3] + counts[8])
    assert forget["others"][BAKED] == pytest.approx(expected) and forget["others"][FROM_SCRATCH] == 0.0
    folder = erased.base.folder.with_name("base-oracles") / card["rivals"][FINE_TUNING]["folder"]
    retain = card["rows"][1]
    by_class = accuracies(load_base(folder)[0], data.test, 10)[1]
    stays = [c for c in range(10) if c not in (3, 8)]
    right = sum(by_class[c] * counts[c] for c in stays)
    assert retain["others"][FINE_TUNING] == pytest.approx(right / sum(counts[c] for c in stays))
    table = (audited.folder / "audit.md").read_text()
    assert "| logit mask | baked | fine-tuning | from scratch, same budget | verdict |" in table
    assert "the original with no layer drawn anew" in table
    without = audit_run(erased, [3, 8], data, replace(OPTIONS, rivals=False), attacks=(ACCURACY,))
    plain = json.loads((without.folder / "audit.json").read_text())
    assert "others" not in plain and "rivals" not in plain and "others" not in plain["rows"][0]
    for one, other in zip(card["rows"], plain["rows"], strict=True):
        assert one == {**other, "others": one["others"]}


def test_a_run_of_unlearning_has_no_rivals(folder, data):
    unlearned = restore_unlearned(folder / "unlearned")
    audited = audit_run(unlearned, [3, 8], data, OPTIONS, attacks=(ACCURACY,), on_rival=lambda _step: pytest.fail())
    assert audited.card.others == () and "fine-tuning" not in (audited.folder / "audit.md").read_text()
