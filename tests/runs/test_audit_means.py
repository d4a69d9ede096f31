"""Means over audits: which figures are in them, their values by hand, and the verdict of the mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memmod.errors import RunError
from memmod.runs.audit_means import Card, Row, means, read_cards


def row(figure: str, value: float | None, oracles=(1.0, 2.0, 3.0), verdict="within", **changes) -> Row:
    defaults = {
        "attack": "probes",
        "level": "L1",
        "oracle_interval": [min(oracles) - 1, max(oracles) + 1] if oracles else None,
        "held_out": 2.0,
        "original": 9.0,
        "control": 9.0,
        "distance": 0.0,
        "broken": False,
        "reason": "",
        "others": {"baked": 8.0},
    }
    return Row(figure=figure, value=value, oracles=list(oracles), verdict=verdict, **defaults | changes)


def card(*rows: Row, quick: bool = False, forgotten: str = "a") -> Card:
    return Card("digits", [forgotten], [0], quick, 0.3, 0, 3, {}, list(rows), {})


def test_values_by_hand():
    found = means([card(row("recall", 1.0)), card(row("recall", 4.0, (2.0, 4.0), others={"baked": 6.0}))])
    (mean,) = found.rows
    assert (mean.value, mean.oracles, mean.low, mean.high) == (2.5, 2.5, 0.5, 4.5)
    assert mean.others == {"baked": 7.0} and mean.verdict == "within"
    assert found.audits == 2 and found.left_out == 0
    assert found.cells() == [("probes", "recall", "L1", "2.500", "2.500 (0.500 to 4.500)", "7.000", "within")]


@pytest.mark.parametrize(
    ("values", "verdicts", "expected"),
    [
        # One far outside makes the mean lie outside; one a little outside does not.
        ((9.0, 2.0), ("worse", "within"), "worse"),
        ((4.5, 2.0), ("worse", "within"), "within"),
        ((-8.0, 2.0), ("better", "within"), "better"),
        # The word of that side, whatever the other side is called.
        ((12.0, -0.5), ("worse", "better"), "worse"),
        ((-0.5, 12.0), ("worse", "better"), "better"),
    ],
)
def test_verdict_of_the_mean(values, verdicts, expected):
    cards = [card(row("recall", value, verdict=verdict)) for value, verdict in zip(values, verdicts, strict=True)]
    assert means(cards).rows[0].verdict == expected


def test_figures_that_not_all_judge_are_left_out_and_counted():
    first = card(row("a", 1.0), row("b", 1.0), row("c", 1.0, verdict="not judged"), row("d", None, (), others={}))
    second = card(row("c", 1.0), row("a", 3.0), row("d", 1.0, others={"baked": None}), row("e", float("nan")))
    found = means([first, second])
    assert [(mean.figure, mean.value) for mean in found.rows] == [("a", 2.0)]
    assert found.left_out == 3
    assert found.summary == "Means of 1 figures over 2 audits: 1 within; 3 that not all of them judge are left out"


def test_other_networks_that_not_all_have_are_no_column():
    found = means([card(row("a", 1.0)), card(row("a", 1.0, others={"baked": None, "scratch": 1.0}))])
    assert found.others == ("baked",) and found.rows[0].others == {"baked": None}
    assert means([card(row("a", 1.0)), card(row("a", 1.0, others={}))]).others == ()


def test_nothing_that_all_judge():
    found = means([card(row("a", 1.0)), card(row("b", 1.0))])
    assert found.rows == () and found.left_out == 2 and found.markdown().startswith("Means of 0 figures")


def written(folder: Path, name: str, made: Card) -> None:
    import msgspec

    path = folder / "audits" / name / "audit.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(msgspec.json.encode(made))


def test_full_and_quick_audits_are_read_apart(tmp_path):
    written(tmp_path / "run", "a", card(row("a", 1.0)))
    written(tmp_path / "run", "b", card(row("a", 2.0), forgotten="b"))
    written(tmp_path / "run", "a-quick", card(row("a", 3.0), quick=True))
    assert [found.forgotten for found in read_cards([tmp_path / "run"])] == [["a"], ["b"]]
    assert [found.rows[0].value for found in read_cards([tmp_path / "run"], quick=True)] == [3.0]


def test_what_is_no_audit(tmp_path):
    with pytest.raises(RunError, match="has no full audit: run `memmod audit` on it first"):
        read_cards([tmp_path])
    written(tmp_path, "a", card(row("a", 1.0), quick=True))
    with pytest.raises(RunError, match="has no full audit"):
        read_cards([tmp_path])
    path = tmp_path / "audits/a/audit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rows": 3}))
    with pytest.raises(RunError, match=r"audit\.json.*rows.*delete it and run `memmod audit` again"):
        read_cards([tmp_path], quick=True)


def test_a_run_that_is_named_twice(tmp_path):
    written(tmp_path, "a", card(row("a", 1.0)))
    with pytest.raises(RunError, match="is named twice, and its audits would count twice"):
        read_cards([tmp_path, tmp_path / "audits/.."])
