"""The benchmarks measure what they say: rivals agree, a wrong one is caught before it is timed, the table renders."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import baselines as rivals
from benchmarks import summary, table
from benchmarks.baselines import RIVALS, left_out, make_layer
from benchmarks.cases import CONV, LINEAR, NETWORKS, SERVED, Case
from benchmarks.layers import LayerComparison, LayerRunner
from benchmarks.measure import PHASES, compare, peak_bytes, saved_bytes

SMALL = (
    Case("linear", "small", 6, 16, 24, tokens=5),
    Case("linear", "rows", 6, 16, 24),
    Case("conv", "small", 4, 8, 8, kernel=3, side=6),
    Case("conv", "depthwise", 4, 8, 8, kernel=3, side=6, groups=8),
)
QUICK = tuple(name for name in RIVALS if name != "compile")


def once(one_round, rounds: int) -> None:
    for _ in range(rounds):
        one_round()


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("case", (*SMALL, replace(SMALL[0], dtype="bf16")), ids=str)
def test_rivals_agree_with_the_reference(case: Case, phase: str) -> None:
    results = compare(LayerComparison(make_layer(case, "cpu"), phase), QUICK, 3, once)
    assert [r.rival for r in results] == list(QUICK)
    assert all(len(r.ratios) == 3 and r.ratio > 0 for r in results if r.rival != "plain")
    text = "\n".join(table.render(results) + summary.by_group(results))
    assert str(case) in text and "memmod" in text and f"{case.group} {case.dtype}" in text


@pytest.mark.parametrize("phase", PHASES)
def test_a_wrong_rival_is_caught_before_it_is_timed(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(layer):
        right = rivals._memmod(layer)
        return lambda x, memory: right(x, memory.roll(1, 0))

    monkeypatch.setitem(RIVALS, "memmod", wrong)
    timed = []
    comparison = LayerComparison(make_layer(SMALL[0], "cpu"), phase)
    with pytest.raises(AssertionError, match="memmod is wrong on linear:small"):
        compare(comparison, ("plain", "memmod"), 3, lambda *a: timed.append(a))
    assert not timed


def test_a_wrong_rival_of_pytorch_is_left_out_and_the_table_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RIVALS, "vmap", lambda layer: lambda x, memory: rivals._memmod(layer)(x, memory.roll(1, 0)))
    results = compare(LayerComparison(make_layer(SMALL[0], "cpu"), "forward"), ("plain", "vmap", "memmod"), 3, once)
    assert [len(r.ratios) for r in results if r.rival != "plain"] == [0, 3]
    assert "left out: vmap is wrong on linear:small" in "\n".join(table.render(results))
    assert summary.by_group(results)


@pytest.mark.parametrize(("seconds", "rounds"), [(None, 9), (1e-9, 3), (1e9, 9)])
def test_slow_rounds_become_fewer(seconds: float | None, rounds: int) -> None:
    run = []
    limit = () if seconds is None else (seconds,)
    comparison = LayerComparison(make_layer(SMALL[1], "cpu"), "forward")
    compare(comparison, ("plain", "memmod"), 9, lambda one, count: [run.append(one()) for _ in range(count)], *limit)
    assert len(run) == rounds


def test_a_wrong_gradient_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, memory):
            return memory.clone()

        @staticmethod
        def backward(ctx, gradient):
            return 2 * gradient

    def wrong(layer):
        right = rivals._memmod(layer)
        return lambda x, memory: right(x, Doubled.apply(memory))

    monkeypatch.setitem(RIVALS, "memmod", wrong)
    comparison = LayerComparison(make_layer(SMALL[0], "cpu"), "forward+backward")
    with pytest.raises(AssertionError, match="dmemory off by"):
        comparison.check("memmod", comparison.runner("memmod", ""))


def test_peak_memory_is_counted() -> None:
    layer = make_layer(SMALL[0], "cpu")
    output = 6 * 5 * 24 * 4
    plain, materialised = (peak_bytes(LayerRunner(name, layer, "forward")) for name in ("plain", "materialised"))
    assert output <= plain < 2 * output
    assert materialised >= plain + 6 * 16 * 24 * 4


def test_saved_memory_counts_each_storage_once_and_no_parameter() -> None:
    x, weight = torch.randn(5, 8), torch.randn(8, 8, requires_grad=True)

    def forward() -> torch.Tensor:
        y = (x @ weight).sigmoid()  # saves x and weight, then y
        return y * y.t().contiguous().t()  # saves y again, and its copy

    assert saved_bytes(forward, (x, weight)) == 2 * 5 * 8 * 4
    assert saved_bytes(forward, (weight,)) == 3 * 5 * 8 * 4


def test_case_tables() -> None:
    cases = LINEAR + CONV + NETWORKS
    assert len({str(case) for case in cases}) == len(cases)
    vit = [case.dtype for case in LINEAR if case.group == "linear ViT"]
    assert vit.count("fp32") == vit.count("bf16") == 12 and len(vit) == 24
    assert {case.quick for case in LINEAR} == {case.quick for case in CONV} == {True, False}
    assert sum(case.quick for case in NETWORKS) == 1 and not any(case.quick for case in SERVED)
    big = Case("linear", "big", 4096, 1024, 1024)
    assert "GiB" in left_out("vmap", big) and left_out("memmod", big) is None
