"""An audit of a run: what it writes, what it keeps, what it says beforehand, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from memmod.data import load_data
from memmod.errors import RunError, SelectionError
from memmod.evaluation.audit.outputs import ACCURACY, OUTPUTS
from memmod.runs import commands
from memmod.runs.audits import AuditOptions, audit_run, baked_network
from memmod.runs.restore import Unlearned, restore_unlearned

pytestmark = pytest.mark.slow

ATTACKS = (ACCURACY, OUTPUTS)
CHANGES = {"steps": 30, "eval_every": 30, "batch_size": 32, "max_set_size": 1}
OPTIONS = AuditOptions(seeds=2, quick=True)


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audits")
    base = commands.train(folder / "base", commands.DataOptions(), "vgg", changes={"epochs": 4, "seed": 2})
    commands.unlearn(base, folder / "unlearned", commands.UnlearnOptions("fast", CHANGES))
    audit_run(restore_unlearned(folder / "unlearned"), [8], load_data("digits"), OPTIONS, attacks=ATTACKS)
    return folder


@pytest.fixture
def unlearned(folder: Path) -> Unlearned:
    return restore_unlearned(folder / "unlearned")


def untouched(*_args) -> None:
    raise AssertionError("what was finished is done again")


def test_a_card_holds_every_figure_and_what_it_was_made_with(folder, unlearned, data):
    card = json.loads((folder / "unlearned/audits/8-quick/audit.json").read_text())
    figures = {(row["attack"], row["figure"]): row for row in card["rows"]}
    original = figures["accuracy", "Acc_f"]["original"]
    with torch.no_grad():
        own = data.test.subset((data.test.labels == 8).nonzero().flatten())
        x = own.batch(torch.arange(len(own)))
        assert original == (unlearned.base.model(x).argmax(1) == 8).double().mean().item() > 0.5
        baked = baked_network(unlearned, (8,), data, 0.3)
        assert figures["accuracy", "Acc_f"]["value"] == (baked(x).argmax(1) == 8).double().mean().item()
    assert figures["accuracy", "Acc_f"]["oracles"] == [0.0, 0.0]
    assert figures["accuracy", "Acc_f"]["held_out"] == 0.0
    assert figures["accuracy", "Acc_f"]["control"] == 0.0
    assert figures["outputs", "ZRF"]["value"] > 0
    assert card["forgotten"] == ["8"] and card["quick"] and card["unlearning"]["steps"] == 30
    assert card["oracles"] == len(card["oracle_folders"]) == 2
    assert card["versions"]["torch"] == torch.__version__.partition("+")[0]
    table = (folder / "unlearned/audits/8-quick/audit.md").read_text()
    assert "| accuracy | Acc_f | L0 |" in table and "figures judged by 2 oracles" in table


def test_what_was_finished_is_not_done_again(folder, unlearned, data):
    before = (folder / "unlearned/audits/8-quick/audit.json").read_bytes()
    attacks = tuple(replace(attack, run=untouched) for attack in ATTACKS)
    estimates = []
    audit_run(unlearned, [8], data, OPTIONS, attacks=attacks, on_estimate=estimates.append, on_oracle=untouched)
    assert (folder / "unlearned/audits/8-quick/audit.json").read_bytes() == before
    assert estimates[0].oracles == 0 and estimates[0].attack_seconds > 0


def test_the_time_is_told_before_the_first_oracle(unlearned, data):
    class Told(Exception):
        pass

    def tell(estimate):
        assert estimate.oracles == 3
        assert 0 < estimate.oracle_seconds < 60
        assert estimate.seconds == 3 * estimate.oracle_seconds + estimate.attack_seconds
        raise Told

    with pytest.raises(Told):
        audit_run(unlearned, [3], data, OPTIONS, attacks=ATTACKS, on_estimate=tell, on_oracle=untouched)


def test_the_baked_network_is_of_the_bases_architecture(unlearned, data):
    network = baked_network(unlearned, (3, 8), data, 0.3)
    assert network.state_dict().keys() == unlearned.base.model.state_dict().keys()
    with torch.no_grad():
        x = data.test.batch(torch.arange(50))
        expected = unlearned.wf.bake({3, 8}, 0.3)(x)
        torch.testing.assert_close(network(x), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("forget", [(), (10,), tuple(range(10))])
def test_classes_that_cannot_be_audited_are_refused(unlearned, data, forget):
    with pytest.raises(SelectionError, match="0 to 9"):
        audit_run(unlearned, forget, data, OPTIONS, attacks=ATTACKS)


def test_one_oracle_gives_no_interval():
    with pytest.raises(RunError, match="seeds is 1"):
        AuditOptions(seeds=1)


def test_a_run_made_anew_loses_its_audits(folder, tmp_path):
    base = commands.restore_base(folder / "base")
    out = tmp_path / "again"
    commands.unlearn(base, out, commands.UnlearnOptions("fast", CHANGES))
    (out / "audits").mkdir()
    (out / "audits/audit.json").write_text("{}")
    commands.unlearn(base, out, commands.UnlearnOptions("fast", {**CHANGES, "seed": 1}), overwrite=True)
    assert not (out / "audits").exists()
