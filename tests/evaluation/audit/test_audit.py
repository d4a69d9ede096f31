"""An audit asks everyone on the bench, judges by the oracles, resumes, and says what it could not tell."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from memmod.errors import DataError, ModelError, RunError
from memmod.evaluation.attacks.attack import Measure, Subject
from memmod.evaluation.audit import audit, expected_seconds
from memmod.files.parts import Parts
from tests.evaluation.audit import problem


def test_a_figure_like_the_oracles_is_within():
    card = audit(problem.bench(2.0), problem.case(), [problem.reading()])
    (row,) = card.rows
    assert (row.measure.value, row.oracles, row.held_out) == (2.0, (1.0, 2.0, 3.0), 2.5)
    assert (row.original, row.control) == (20.0, 19.0)
    assert (row.verdict.word, row.broken) == ("within", False)
    assert card.counts() == {"within": 1}


def test_a_figure_like_the_originals_is_worse_by_the_distance():
    (row,) = audit(problem.bench(20.0), problem.case(), [problem.reading()]).rows
    # the interval ends at 2 + 4.3027 · √(4/3)
    assert row.verdict.word == "worse"
    assert row.verdict.distance == pytest.approx(18 - 4.30265 * math.sqrt(4 / 3), rel=1e-4)
    (row,) = audit(problem.bench(20.0), problem.case(), [problem.reading(knows={"": "less"})]).rows
    assert row.verdict.word == "better"


def test_an_attack_that_an_oracle_fails_is_broken():
    card = audit(problem.bench(2.0, held_out=20.0), problem.case(), [problem.reading()])
    assert card.rows[0].broken
    assert card.counts() == {"broken": 1}
    assert not card.worse()
    assert "broken (within)" in card.markdown()


def test_each_oracle_is_compared_with_the_others_alone():
    seen = {}

    def run(subject, case):
        seen[subject.name] = [problem.value_of(oracle) for oracle in case.oracles]
        return {"number": Measure(0.0)}

    audit(problem.bench(), problem.case(), [problem.reading(run=run)])
    assert seen == {
        "held-out oracle": [1.0, 2.0, 3.0],
        "oracle 1": [2.0, 3.0],
        "oracle 2": [1.0, 3.0],
        "oracle 3": [1.0, 2.0],
        "memmod": [1.0, 2.0, 3.0],
        "original": [1.0, 2.0, 3.0],
        "logit mask": [1.0, 2.0, 3.0],
    }
    assert next(iter(seen)) == "held-out oracle"


def test_other_networks_get_columns_and_no_verdict():
    others = (Subject("baked", problem.network(15.0)), Subject("tuned", problem.network(7.0)))
    bench = replace(problem.bench(2.0), others=others)
    nothing = problem.reading("elsewhere", applies=lambda subject, case: "no BatchNorm")
    only = problem.reading("picky", applies=lambda subject, case: "no" if subject.name == "tuned" else None)
    card = audit(bench, problem.case(), [problem.reading(), nothing, only])
    row, _, picky = card.rows
    assert row.others == {"baked": 15.0, "tuned": 7.0} and row.verdict.word == "within"
    assert picky.others == {"baked": 15.0, "tuned": None}
    assert card.headings[-4:] == ("logit mask", "baked", "tuned", "verdict")
    assert [len(cells) for cells in card.cells()] == [len(card.headings)] * 3
    assert card.cells()[0][-3:] == ("15.000", "7.000", "within") and card.cells()[2][-2] == "-"
    assert "| 19.000 | 15.000 | 7.000 | within |" in card.markdown()
    assert card.to_dict()["others"] == ["baked", "tuned"]
    plain = audit(problem.bench(2.0), problem.case(), [problem.reading()])
    assert "others" not in plain.to_dict() and "others" not in plain.to_dict()["rows"][0]


def test_what_an_attack_cannot_tell_is_said():
    def refuses(subject, case):
        raise DataError("9 images are too few: 100 are needed")

    attacks = [
        problem.reading("refusing", refuses),
        problem.reading("elsewhere", applies=lambda subject, case: "no BatchNorm"),
        problem.reading(),
    ]
    card = audit(problem.bench(), problem.case(), attacks)
    assert [row.reason for row in card.rows] == ["9 images are too few: 100 are needed", "no BatchNorm", ""]
    assert card.counts() == {"within": 1}
    assert "100 are needed" in card.markdown()


def test_a_figure_that_is_no_number_is_not_judged():
    def run(subject, case):
        return {"number": Measure(math.nan)}

    card = audit(problem.bench(), problem.case(), [problem.reading(run=run)])
    assert card.counts() == {"not judged": 1}


def counting(seen):
    def run(subject, case):
        seen.append(subject.name)
        return {"number": Measure(problem.value_of(subject.network), 0.1, (1.0, 2.0))}

    return run


def test_finished_parts_are_not_done_again(tmp_path):
    seen = []
    attack = problem.reading(run=counting(seen))
    first = audit(problem.bench(), problem.case(), [attack], parts=Parts(tmp_path), data="a")
    assert len(seen) == 7
    again = audit(problem.bench(), problem.case(), [attack], parts=Parts(tmp_path), data="a")
    assert len(seen) == 7
    assert again == first


@pytest.mark.parametrize("change", ["suspect", "data", "seed", "version", "quick"])
def test_what_depends_on_something_else_is_done_again(tmp_path, change):
    seen = []
    attack = problem.reading(run=counting(seen))
    case, bench = problem.case(), problem.bench()
    audit(bench, case, [attack], parts=Parts(tmp_path), data="a")
    seen.clear()
    if change == "suspect":
        bench = problem.bench(2.1)
    elif change == "version":
        attack = replace(attack, version=2)
    elif change != "data":
        case = replace(case, **{change: {"seed": 1, "quick": True}[change]})
    audit(bench, case, [attack], parts=Parts(tmp_path), data="b" if change == "data" else "a")
    assert seen == (["memmod"] if change == "suspect" else seen) and seen


def test_a_killed_audit_goes_on_where_it_was(tmp_path):
    seen = []
    run = counting(seen)

    def killed(subject, case):
        if len(seen) == 3:
            raise KeyboardInterrupt
        return run(subject, case)

    with pytest.raises(KeyboardInterrupt):
        audit(problem.bench(), problem.case(), [problem.reading(run=killed)], parts=Parts(tmp_path))
    audit(problem.bench(), problem.case(), [problem.reading(run=run)], parts=Parts(tmp_path))
    assert len(seen) == 7 and len(set(seen)) == 7


def test_progress_tells_every_part_and_what_is_left():
    states = []
    audit(problem.bench(), problem.case(), [problem.reading()], on_part=states.append)
    assert [(state.part, state.parts) for state in states] == [(n, 7) for n in range(1, 8)]
    assert states[-1].seconds_left == 0.0


def test_the_time_is_that_of_the_parts_that_apply():
    case, bench = problem.case(), problem.bench()
    dear = problem.reading(cost=lambda _case: 10**9)
    assert expected_seconds(bench, case, [dear]) > 1000
    assert expected_seconds(bench, case, [replace(dear, applies=lambda *_: "not here")]) == 0.0


def test_attacks_draw_what_the_seed_says():
    def run(subject, case):
        return {"number": Measure(torch.rand(()).item())}

    first, second = (audit(problem.bench(), problem.case(), [problem.reading(run=run)]) for _ in range(2))
    assert first == second
    bench, case = problem.bench(), problem.case()
    before = torch.get_rng_state()
    audit(bench, case, [problem.reading(run=run)])
    assert torch.equal(before, torch.get_rng_state())


def test_an_oracle_of_another_architecture_is_refused():
    case = problem.case()
    other = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Linear(5, 3))
    with pytest.raises(ModelError, match="oracle 2 is a Sequential of another architecture"):
        audit(problem.bench(), replace(case, oracles=(case.oracles[0], other)), [problem.reading()])


def test_one_oracle_is_too_few():
    with pytest.raises(RunError, match="at least 2 oracles"):
        audit(problem.bench(), problem.case((1.0,)), [problem.reading()])
