"""The benchmarks measure what they say: rivals agree, a wrong one is caught before it is timed, the table renders."""

from __future__ import annotations

import pytest
import torch

from benchmarks import rivals, table
from benchmarks.cases import CONV, LINEAR, Case
from benchmarks.measure import PHASES, Runner, compare, peak_bytes
from benchmarks.rivals import RIVALS, left_out, make_layer

SMALL = (
    Case("linear", "small", 6, 16, 24, tokens=5),
    Case("linear", "rows", 6, 16, 24),
    Case("conv", "small", 4, 8, 8, kernel=3, side=6),
)
QUICK = tuple(name for name in RIVALS if name != "compile")


def once(one_round, rounds: int) -> None:
    for _ in range(rounds):
        one_round()


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_rivals_agree_with_the_reference(case: Case, phase: str) -> None:
    results = compare(make_layer(case, torch.float32, "cpu"), phase, QUICK, 3, once)
    assert [r.rival for r in results] == list(QUICK)
    assert all(len(r.ratios) == 3 and r.ratio > 0 for r in results if r.rival != "plain")
    text = "\n".join(table.render(results) + table.summarise(results))
    assert str(case) in text and "memmod" in text and "geometric mean" in text


@pytest.mark.parametrize("phase", PHASES)
def test_a_wrong_rival_is_caught_before_it_is_timed(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(layer):
        right = rivals._memmod(layer)
        return lambda x, memory: right(x, memory.roll(1, 0))

    monkeypatch.setitem(RIVALS, "memmod", wrong)
    timed = []
    with pytest.raises(AssertionError, match="memmod is wrong on linear:small"):
        compare(make_layer(SMALL[0], torch.float32, "cpu"), phase, ("plain", "memmod"), 3, lambda *a: timed.append(a))
    assert not timed


def test_peak_memory_is_counted() -> None:
    layer = make_layer(SMALL[0], torch.float32, "cpu")
    output = 6 * 5 * 24 * 4
    plain, materialised = (peak_bytes(Runner(name, layer, "forward")) for name in ("plain", "materialised"))
    assert output <= plain < 2 * output
    assert materialised >= plain + 6 * 16 * 24 * 4


def test_case_tables() -> None:
    assert len({str(case) for case in LINEAR + CONV}) == len(LINEAR + CONV)
    assert len([case for case in LINEAR if case.group == "linear ViT"]) == 12
    assert {case.quick for case in LINEAR} == {case.quick for case in CONV} == {True, False}
    big = Case("linear", "big", 4096, 1024, 1024)
    assert "GiB" in left_out("vmap", big) and left_out("memmod", big) is None
