"""The commands that show what is gone: what they print and write, and one message for whatever goes wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from memmod.data import load_data
from memmod.errors import ModelError
from memmod.training import accuracies
from memmod.unlearning.baselines import METHODS
from memmod.zoo import load_base
from tests.cli.test_main import TINY, fail, invoke, succeed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    succeed("train", "--model", "vgg", "--epochs", 2, "--out", folder / "base")
    succeed("unlearn", "--base", folder / "base", "--out", folder / "unlearned", "--preset", "fast", *TINY)
    return folder


def test_retrain_names_the_oracles(runs):
    output = succeed("retrain", runs / "base", "--without", "8", "--seeds", 2)
    assert "Seed 1: " in output and "Seed 2: " in output
    (first, second) = sorted((runs / "base-oracles").glob("8-seed*"))
    assert json.loads((first / "metrics.json").read_text())["acc_forget"] == [0.0]
    assert json.loads((second / "config.json").read_text())["settings"]["without"] == [8]
    assert "oracle 1 of" not in succeed("retrain", runs / "base", "--without", "8", "--seeds", 2)


def test_audit_prints_and_writes_the_same_card(runs):
    output = succeed("audit", runs / "unlearned", "--forget", "8", "--seeds", 2, "--quick")
    folder = runs / "unlearned/audits/8-quick"
    card = json.loads((folder / "audit.json").read_text())
    attacks = {row["attack"] for row in card["rows"]}
    assert {"accuracy", "outputs", "representation", "membership", "probes", "relearning", "gate flip"} <= attacks
    for word in ("probe/recall/penultimate", "relearning", "figures judged by 2 oracles"):
        assert word in output and word in (folder / "audit.md").read_text()
    again = invoke("audit", runs / "unlearned", "--forget", "8", "--seeds", 2, "--quick", "--json")
    assert json.loads(again.stdout) == card
    assert "oracles to train" not in again.stderr


def test_compare_puts_methods_beside_the_run(runs):
    arguments = ("--forget", "8", "--methods", "nothing,logit-mask,ssd", "--seeds", 1, "--quick", "--no-tuned")
    output = succeed("compare", runs / "unlearned", *arguments)
    card = json.loads((runs / "unlearned-compared/comparison.json").read_text())
    lines = {line["method"]: line for line in card["lines"]}
    assert list(lines) == ["memmod", "nothing", "logit-mask", "ssd"]
    mask = lines["logit-mask"]["classes"][0]["figures"]
    nothing = lines["nothing"]["classes"][0]["figures"]
    assert mask["Acc_f"] == 0.0 < nothing["Acc_f"]
    # a mask leaves the features, and so the probe, as they are
    assert mask["probe excess"] == nothing["probe excess"]
    assert lines["memmod"]["bytes"] == (runs / "unlearned/memory.safetensors").stat().st_size
    assert lines["ssd"]["bytes"] > lines["logit-mask"]["bytes"] > 0
    assert "logit-mask" in output and "| logit-mask |" in (runs / "unlearned-compared/comparison.md").read_text()


def test_settings_chosen_on_one_class_serve_all(runs):
    out = runs / "tuned"
    arguments = ("--forget", "8,3", "--methods", "ssd", "--tune-on", "3", "--seeds", 1, "--quick", "--out", out)
    succeed("compare", runs / "unlearned", *arguments)
    card = json.loads((out / "comparison.json").read_text())
    (tuned,) = [line for line in card["lines"] if line["settings"] == "tuned"]
    assert tuned["classes"][0]["config"] == tuned["classes"][1]["config"]
    assert card["tuned on"] == ["3"] and tuned["tuning_seconds"] > 0
    assert [entry["tuning_seconds"] for entry in tuned["classes"]] == [0.0, 0.0]
    assert "chosen on held-out training images of 3." in (out / "comparison.md").read_text()
    # The search is kept as the figures are.
    before = tuned["tuning_seconds"]
    succeed("compare", runs / "unlearned", *arguments)
    again = json.loads((out / "comparison.json").read_text())
    assert [line["tuning_seconds"] for line in again["lines"] if line["settings"] == "tuned"] == [before]


def test_a_method_that_refuses_a_network_costs_no_other(runs, monkeypatch):
    def refuse(task, config):
        raise ModelError("there is no such layer")

    monkeypatch.setitem(METHODS, "ssd", replace(METHODS["ssd"], run=refuse))
    arguments = ("--forget", "5", "--methods", "ssd,nothing", "--tune-on", "5", "--seeds", 1, "--quick")
    succeed("compare", runs / "unlearned", *arguments, "--out", runs / "refused")
    card = json.loads((runs / "refused/comparison.json").read_text())
    lines = {(line["method"], line["settings"]): line["classes"][0] for line in card["lines"]}
    for settings in ("published defaults", "tuned"):
        assert lines["ssd", settings]["failed"] == "there is no such layer"
    assert lines["nothing", "no settings"]["figures"]["Acc_f"] > 0
    table = (runs / "refused/comparison.md").read_text()
    assert "(1 of 1 classes failed)" in table and "ssd, tuned: there is no such layer" in table


def test_what_cannot_be_done_is_said_in_one_line(runs):
    assert "'nine'" in fail("audit", runs / "unlearned", "--forget", "nine")
    assert "without memories" in fail("audit", runs / "base", "--forget", "8")
    assert "class 10" in fail("retrain", runs / "base", "--without", "10")
    assert "class 10" in fail("compare", runs / "unlearned", "--forget", "8", "--tune-on", "10")
    assert "'scrubb'" in fail("compare", runs / "unlearned", "--methods", "scrubb")
    assert not (runs / "unlearned/audits/nine").exists()


def test_erase_writes_a_network_that_audit_takes(runs):
    output = succeed("erase", runs / "unlearned", "--forget", "8", "--budget", 0.9, "--batch-size", 16)
    folder = runs / "unlearned-erased-8"
    assert "fc drawn anew" in output and str(folder) in output
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["acc_forget"] == [0.0] and metrics["share_of_training"] == pytest.approx(0.9, abs=0.02)
    network, card = load_base(folder)
    assert card["erased"] == [8] and accuracies(network, load_data("digits").test, 10)[1] == metrics["class_accuracy"]
    succeed("audit", folder, "--seeds", 2, "--quick")
    audit = json.loads((folder / "audits/8-quick/audit.json").read_text())
    assert audit["erasing"]["unlearned"] == "unlearned" and audit["erasing"]["forget"] == [8]
    rows = {(row["attack"], row["figure"]): row for row in audit["rows"]}
    assert rows["accuracy", "Acc_f"]["value"] == 0.0
    # Nothing of it can be opened again.
    assert audit["others"] == ["baked", "fine-tuning", "from scratch, same budget"]
    assert rows["accuracy", "Acc_f"]["others"]["from scratch, same budget"] == 0.0
    # as the original, and every attack that takes an ordinary network
    assert all(rows["probes", "probe/recall/penultimate"]["others"].values())
    assert "it has no memories" in (folder / "audits/8-quick/audit.md").read_text()
    measured = json.loads(succeed("evaluate", folder, "--json"))
    assert measured["erased"] == metrics["class_accuracy"] and measured["original"][8] > 0.5
    assert "8 (erased)" in succeed("evaluate", folder)
    again = succeed("erase", runs / "unlearned", "--forget", "8", "--budget", 0.9, "--batch-size", 16, "--resume")
    assert "drawn anew" not in again


def test_frontier_prints_and_writes_table_and_picture(runs):
    arguments = ("--forget", "8,5", "--budgets", "0.95,0.9", "--judges", 2, "--quick")
    output = succeed("frontier", runs / "unlearned", *arguments)
    folder = runs / "unlearned-frontier"
    card = json.loads((folder / "frontier.json").read_text())
    assert card["budgets"] == [0.9, 0.95] and card["sets"] == [["5"], ["8"]] and len(card["points"]) == 8
    assert "mean of 2" in output and "| 5 | from scratch | 90 % |" in (folder / "frontier.md").read_text()
    assert (folder / "frontier.svg").read_bytes().startswith(b"<?xml")
    again = invoke("frontier", runs / "unlearned", *arguments)
    assert "0 oracles and 0 other networks to train" in again.stderr
    assert json.loads((folder / "frontier.json").read_text()) == card
    both = ("--forget", "8,5", "--together", "--budgets", "0.9", "--judges", 2, "--quick")
    assert "5, 8" in succeed("frontier", runs / "unlearned", *both, "--out", runs / "set")
    card = json.loads((runs / "set/frontier.json").read_text())
    assert card["sets"] == [["5", "8"]] and len(card["points"]) == 2
    assert "too few for new layers" in fail("frontier", runs / "unlearned", "--forget", "8", "--budgets", "0.001")
    assert "none twice" in fail("frontier", runs / "unlearned", "--forget", "8", "--budgets", "0.5,0.5")
    assert "'abacus'" in fail("frontier", runs / "unlearned", "--forget", "8", "--device", "abacus")


def test_what_cannot_be_erased_is_said_in_one_line(runs):
    assert "too few for new layers" in fail("erase", runs / "unlearned", "--forget", "8", "--budget", 0.001)
    assert "budget is 2.0" in fail("erase", runs / "unlearned", "--forget", "8", "--budget", 2)
    assert "no layer 'top'" in fail("erase", runs / "unlearned", "--forget", "8", "--budget", 0.9, "--reset", "top")
    assert "--resume" in fail("erase", runs / "unlearned", "--forget", "8", "--budget", 0.9)
    assert "not 3: audit what was erased" in fail("audit", runs / "unlearned-erased-8", "--forget", "3")
    assert "memmod erase" in fail("bake", runs / "unlearned-erased-8", "--forget", "8")
    assert not (runs / "unlearned-erased-3").exists()
    (runs / "unlearned-erased-8/base.safetensors").unlink()
    assert "did not finish" in fail("audit", runs / "unlearned-erased-8")


def test_means_over_audits(runs, tmp_path):
    for c in ("3", "8"):
        succeed("audit", runs / "unlearned", "--forget", c, "--seeds", 2, "--quick")
    output = succeed("audits", runs / "unlearned", "--quick", "--out", tmp_path / "means.md")
    cards = sorted((runs / "unlearned/audits").glob("*-quick/audit.json"))
    found = json.loads(invoke("audits", runs / "unlearned", "--quick", "--json").stdout)
    assert len(cards) == found["audits"] >= 2
    rows = [row for path in cards for row in json.loads(path.read_text())["rows"] if row["figure"] == "Acc_r"]
    (mean,) = [row for row in found["rows"] if row["figure"] == "Acc_r"]
    assert mean["value"] == pytest.approx(sum(row["value"] for row in rows) / len(rows))
    written = (tmp_path / "means.md").read_text()
    assert "| accuracy | Acc_r |" in written and f"over {len(cards)} audits" in written and "Acc_r" in output
    assert "has no full audit" in fail("audits", runs / "unlearned")
