"""The network benchmarks measure what they say: rivals compute the same step, and plain is not slowed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import networks, summary, table
from benchmarks.cases import NetworkCase
from benchmarks.measure import PHASES, compare
from benchmarks.networks import NETWORK_RIVALS, make_network
from benchmarks.steps import NetworkComparison, NetworkRunner

RESNET = NetworkCase("tiny", "resnet", "resnet", 8, 16)
VIT = NetworkCase("tiny", "vit", "vit", 8, 16, convolutional=False)
# Units behind a norm and in the last of four dims; windows, of which each sample has several.
CONVNEXT = NetworkCase("tiny", "ConvNeXt", "timm:convnext_atto", 64, 2)
SWIN = NetworkCase("tiny", "Swin", "timm:swin_tiny_patch4_window7_224", 224, 2)
STEP = "forward+backward"


def comparison(case: NetworkCase, phase: str) -> NetworkComparison:
    return NetworkComparison(make_network(case, "cpu", whole_batch=phase == "forward"), phase)


def once(one_round, rounds: int) -> None:
    for _ in range(rounds):
        one_round()


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("case", (RESNET, VIT), ids=str)
def test_rivals_agree(case: NetworkCase, phase: str) -> None:
    rivals = tuple(rival for rival in NETWORK_RIVALS if rival != "plain compiled")
    results = {r.rival: r for r in compare(comparison(case, phase), rivals, 2, once)}
    assert [name for name, r in results.items() if r.note] == (["plain folded", "eager folded"] if case is VIT else [])
    measured = [r for r in results.values() if not r.note]
    assert all((r.saved_bytes is None) == (phase == "forward") for r in measured)
    if phase == STEP:
        assert 0 < results["plain"].saved_bytes < results["eager unfolded"].saved_bytes
    text = "\n".join(table.render(measured) + summary.networks(measured))
    assert str(case) in text and "memmod" in text


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("case", (CONVNEXT, SWIN), ids=str)
def test_eager_gates_sit_where_memmods_do(case: NetworkCase, phase: str) -> None:
    under_test = comparison(case, phase)
    layout = under_test.layouts[0]
    expected, found = (under_test.runner(rival, layout).once() for rival in ("eager unfolded", "memmod"))
    assert len(expected) == len(found) and expected[0].std() > 0
    for one, other in zip(expected, found, strict=True):
        assert (one - other).norm() <= 1e-4 * one.norm()


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("rival", ("plain", "eager folded", "memmod"))
def test_a_wrong_rival_is_caught_before_it_is_timed(rival: str, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(network):
        made = right(network)
        if rival == "plain":
            nn.init.constant_(made.module.get_submodule("fc").bias, 0.5)
        else:
            first = made.leaves[0]
            first.data = first.data.roll(1, 0)
        return made

    right = NETWORK_RIVALS[rival]
    timed = []
    under_test = comparison(RESNET, phase)
    assert max(under_test.allowed) < 1e-4  # taken from the right eager forms
    monkeypatch.setitem(NETWORK_RIVALS, rival, wrong)
    names = tuple(dict.fromkeys(("plain", rival)))
    if rival == "eager folded":
        plain, left_out = compare(under_test, names, 2, once)
        assert len(plain.seconds) == 2
        assert left_out.note.startswith(f"{rival} is wrong on tiny:resnet: logits") and not left_out.seconds
        return
    with pytest.raises(AssertionError, match=f"{rival} is wrong on tiny:resnet: logits"):
        compare(under_test, names, 2, lambda *a: timed.append(a))
    assert not timed


@pytest.mark.slow
def test_the_compiled_rival_agrees() -> None:
    results = compare(comparison(RESNET, STEP), ("plain", "plain compiled"), 2, once)
    assert [(r.rival, len(r.seconds), r.note) for r in results] == [("plain", 2, ""), ("plain compiled", 2, "")]


def test_a_wrong_memory_gradient_is_caught() -> None:
    under_test = comparison(RESNET, STEP)
    runner = under_test.runner("memmod", "NCHW")
    under_test.check("memmod", runner)
    right = runner.once
    for layer in range(1, 1 + len(runner.leaves)):
        # Classes exchanged in one layer's gradient.
        runner.once = lambda layer=layer: tuple(t.roll(1, 0) if k == layer else t for k, t in enumerate(right()))
        with pytest.raises(AssertionError, match="memory gradients off"):
            under_test.check("memmod", runner)


def test_only_selected_samples_are_gated() -> None:
    network = make_network(RESNET, "cpu", whole_batch=False)
    nothing = network.index == -1
    assert nothing.any() and not nothing.all()
    plain, eager = (NetworkRunner(name, network, STEP).once()[0] for name in ("plain", "eager unfolded"))
    torch.testing.assert_close(plain[nothing], eager[nothing])
    assert (plain[~nothing] - eager[~nothing]).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize(("rival", "norms"), (("plain", 8), ("plain folded", 0)))
def test_the_plain_backward_is_as_deep_as_the_first_gate_and_no_deeper(rival: str, norms: int) -> None:
    network = make_network(RESNET, "cpu", whole_batch=False)
    made = NETWORK_RIVALS[rival](network)
    names, todo = [], [made.call(network.x).grad_fn]
    for node in todo:
        names.append(node.name())
        todo += [below for below, _ in node.next_functions if below is not None and below not in todo]
    assert sum(isinstance(m, nn.Conv2d) for m in made.module.modules()) == 9
    # The first convolution and its norm lie in front of the first gate.
    assert names.count("ConvolutionBackward0") == 8
    assert sum("BatchNorm" in name for name in names) == norms
    assert names.count("_StartBackward") == 1
    assert [n for n in names if "AccumulateGrad" in n] == ["torch::autograd::AccumulateGrad"]
    assert not any(p.requires_grad for p in made.module.parameters())


def test_the_start_of_the_backward_copies_nothing() -> None:
    token, y = torch.zeros(1, requires_grad=True), torch.randn(4)
    out = networks._Start.apply(y, token)
    assert out.data_ptr() == y.data_ptr()
    assert torch.autograd.grad(out.relu_().sum(), token)[0].shape == (1,)
