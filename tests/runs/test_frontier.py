"""A frontier: every figure is that of its network, differences are to the oracles, and nothing is done twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch

from memmod.data import load_data
from memmod.errors import RunError, SelectionError
from memmod.evaluation.metrics import total_variation
from memmod.runs import commands
from memmod.runs import frontier as module
from memmod.runs.erase import EraseOptions, erase_run
from memmod.runs.frontier import Figures, Frontier, FrontierOptions, Point, frontier
from memmod.runs.oracles import oracle_seeds, retrain
from memmod.runs.restore import Unlearned, restore_unlearned
from memmod.training import accuracies
from memmod.zoo import load_base

UNLEARNING = {"steps": 10, "eval_every": 10, "batch_size": 32, "max_set_size": 1}
OPTIONS = FrontierOptions(budgets=(0.95, 0.9), oracles=2, quick=True)


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture(scope="module")
def unlearned(tmp_path_factory: pytest.TempPathFactory) -> Unlearned:
    folder = tmp_path_factory.mktemp("frontier")
    base = commands.train(folder / "base", commands.DataOptions(), "vgg", changes={"epochs": 4, "seed": 2})
    commands.unlearn(base, folder / "unlearned", commands.UnlearnOptions("fast", UNLEARNING))
    return restore_unlearned(folder / "unlearned")


@pytest.fixture(scope="module")
def found(unlearned, data) -> Frontier:
    return frontier(unlearned, [(8,)], data, unlearned.run.path.with_name("out"), OPTIONS)


def retained(network, data) -> float:
    with torch.no_grad():
        stays = data.test.subset((data.test.labels != 8).nonzero().flatten())
        return (network(stays.batch(torch.arange(len(stays)))).argmax(1) == stays.labels).double().mean().item()


@pytest.mark.slow
def test_each_figure_is_that_of_its_network(unlearned, data, found):
    oracles = retrain(unlearned.base, (8,), oracle_seeds(unlearned.base, 2), data)
    assert [one.acc_r for one in found.oracles[8,]] == [retained(oracle.network, data) for oracle in oracles]
    own = data.test.subset((data.test.labels == 8).nonzero().flatten())
    x = own.batch(torch.arange(len(own)))
    with torch.no_grad():
        judged = [oracle.network(x).double().softmax(1) for oracle in oracles]
        assert found.oracles[8,][0].total_variation == total_variation(judged[0], judged[1])
        assert {(p.network, p.budget) for p in found.points} == {
            (network, budget) for network in ("erased", "from scratch") for budget in (0.9, 0.95)
        }
        for point in found.points:
            network = load_base(unlearned.run.path.with_name("base-oracles") / point.folder)[0]
            assert accuracies(network, data.test, 10)[1][8] == 0.0
            assert point.figures.acc_r == retained(network, data)
            p = network(x).double().softmax(1)
            expected = sum(total_variation(p, q) for q in judged) / 2
            assert point.figures.total_variation == pytest.approx(expected)
            assert point.seconds > 0 and 0 <= point.figures.recall <= 1


@pytest.mark.slow
def test_an_erased_point_is_what_erase_writes(unlearned, data, found, tmp_path):
    erased = erase_run(unlearned, [8], data, tmp_path / "erased", EraseOptions({"budget": 0.9, "seed": 0}))
    (point,) = [p for p in found.points if (p.network, p.budget) == ("erased", 0.9)]
    assert point.steps == erased.run.settings["steps"]
    network = load_base(unlearned.run.path.with_name("base-oracles") / point.folder)[0]
    for name, value in erased.network.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name


@pytest.mark.slow
def test_what_was_finished_is_not_done_again(unlearned, data, found, tmp_path, monkeypatch):
    def untouched(*_args, **_options):
        raise AssertionError("what was finished is done again")

    monkeypatch.setattr(module, "_measure", untouched)
    estimates, steps = [], []
    told = {"on_estimate": estimates.append, "on_network": steps.append}
    again = frontier(unlearned, [(8,), (8,)], data, tmp_path, OPTIONS, **told)
    assert again.points == found.points and again.oracles == found.oracles and steps == []
    assert (estimates[0].oracles, estimates[0].rivals) == (0, 0)
    assert (tmp_path / "frontier.json").read_bytes() == (found.folder / "frontier.json").read_bytes()


@pytest.mark.slow
def test_a_killed_call_goes_on_where_it_was(unlearned, data, found, tmp_path, monkeypatch):
    place = tmp_path / "kept"
    options = replace(OPTIONS, budgets=(0.9,), folder=place)
    measure, done, told = module._measure, [], []

    def killed(subject, case):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(subject)
        return measure(subject, case)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_measure", killed)
        with pytest.raises(KeyboardInterrupt):
            frontier(unlearned, [(8,)], data, tmp_path / "out", options)
    # all networks are kept before the first is measured
    assert len(list(place.glob("8-*/base.safetensors"))) == 4 and not (tmp_path / "out").exists()
    monkeypatch.setattr(module, "_measure", lambda subject, case: (done.append(subject), measure(subject, case))[1])
    again = frontier(unlearned, [(8,)], data, tmp_path / "out", options, on_measured=told.append)
    assert len(done) == 4 and [state.part for state in told] == [2, 3, 4]
    expected = {(p.network, p.budget): p.figures for p in found.points}
    assert {(p.network, p.budget): p.figures for p in again.points}.items() <= expected.items()


@pytest.mark.slow
def test_the_files_hold_the_same_figures(unlearned, found):
    card = json.loads((found.folder / "frontier.json").read_text())
    assert card["budgets"] == [0.9, 0.95] and card["sets"] == [["8"]] and card["model"] == "vgg"
    mean = sum(one["acc_r"] for one in card["oracle_figures"]["8"]) / 2
    for point in card["points"]:
        assert point["points"] == pytest.approx(100 * (point["acc_r"] - mean))
        (line,) = [m for m in card["means"] if (m["network"], m["budget"]) == (point["network"], point["budget"])]
        assert line["points"] == pytest.approx(point["points"]) and line["excess"] == pytest.approx(point["excess"])
        cells = found.line(point["network"], point["budget"], [(8,)]).cells()
        assert (
            f"| 8 | {point['network']} | {100 * point['budget']:g} % | {' | '.join(cells)} |"
            in (found.folder / "frontier.md").read_text()
        )
    root = ET.fromstring((found.folder / "frontier.svg").read_bytes())
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"erased", "from scratch", "range of the oracles", "90 %", "95 %"} <= set(words)


@pytest.mark.slow
def test_what_cannot_be_measured_is_said_before_anything_is_made(unlearned, data, tmp_path):
    with pytest.raises(SelectionError, match="nothing to erase"):
        frontier(unlearned, [], data, tmp_path / "out", OPTIONS)
    with pytest.raises(SelectionError, match="nothing to erase"):
        frontier(unlearned, [(8,), ()], data, tmp_path / "out", OPTIONS)
    with pytest.raises(RunError, match="too few for new layers"):
        options = replace(OPTIONS, budgets=(0.9, 1e-3), folder=tmp_path / "k")
        frontier(unlearned, [(8,)], data, tmp_path / "out", options)
    assert not list(tmp_path.iterdir())
    for changes, words in (({"budgets": ()}, "at least one"), ({"seeds": 0}, "seeds is 0"), ({"oracles": 1}, "range")):
        with pytest.raises(RunError, match=words):
            replace(OPTIONS, **changes)


@pytest.mark.slow
def test_a_set_is_erased_at_once_and_judged_by_networks_without_all_of_it(unlearned, data, tmp_path):
    found = frontier(unlearned, [(8, 3)], data, tmp_path, replace(OPTIONS, budgets=(0.9,)))
    oracles = retrain(unlearned.base, (3, 8), oracle_seeds(unlearned.base, 2), data)
    stays = [c for c in range(10) if c not in (3, 8)]
    assert found.sets == {(3, 8): "3, 8"} and len(found.points) == 2

    def acc_r(network) -> float:
        each = accuracies(network, data.test, 10)[1]
        assert each[3] == each[8] == 0.0
        return sum(each[c] for c in stays) / len(stays)

    assert [one.acc_r for one in found.oracles[3, 8]] == pytest.approx([acc_r(o.network) for o in oracles], abs=0.01)
    for point in found.points:
        network = load_base(unlearned.run.path.with_name("base-oracles") / point.folder)[0]
        assert point.figures.acc_r == pytest.approx(acc_r(network), abs=0.01)
    card = json.loads((tmp_path / "frontier.json").read_text())
    assert card["sets"] == [["3", "8"]] and {p["without"] for p in card["points"]} == {"3, 8"}


def point(c: int, seed: int, acc_r: float, recall: float) -> Point:
    return Point((c,), "erased", 0.1, seed, Figures(acc_r, recall, 0.2), 10.0 * (1 + seed), 60, "folder")


def test_lines_are_means_of_differences_to_each_class_s_oracles():
    found = Frontier(
        Path("nowhere"),
        {(0,): "cat", (1,): "dog"},
        (0.1,),
        (point(0, 0, 0.90, 0.60), point(0, 1, 0.88, 0.62), point(1, 0, 0.80, 0.90), point(1, 1, 0.82, 0.92)),
        {
            (0,): (Figures(0.93, 0.60, 0.1), Figures(0.91, 0.50, 0.1)),
            (1,): (Figures(0.80, 0.95, 0.3), Figures(0.84, 0.95, 0.3)),
        },
    )
    cat, both = found.line("erased", 0.1, [(0,)]), found.line("erased", 0.1, [(0,), (1,)])
    assert (cat.points, cat.excess, cat.seconds) == (pytest.approx(-3.0), pytest.approx(0.06), 15.0)
    assert (both.points, both.excess) == (pytest.approx(-2.0), pytest.approx((0.06 - 0.04) / 2))
    assert found.band("acc_r", [(0,), (1,)]) == pytest.approx((-0.015, 0.015))
    assert found.band("recall", [(0,)]) == pytest.approx((-0.05, 0.05))
    assert cat.cells() == ("-3.0", "+0.060", "0.200", "15")
