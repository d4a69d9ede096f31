"""Every objective against its formula, written out sample by sample."""

from __future__ import annotations

import math

import pytest
import torch

from memmod.errors import RunError, SelectionError
from memmod.unlearning.objectives import (
    Batch,
    Terms,
    gate_penalty,
    get_objective,
    masked_target,
    objective_names,
    raised,
    weighted,
)

CLASSES = 5
LABELS = [0, 1, 1, 3, 4, 2, 0]
SELECTION = [[0, -1], [1, 3], [1, -1], [3, 0], [2, -1], [0, 4], [3, 3]]
FORGET = [True, True, True, True, False, False, False]


def batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    logits, frozen = 2 * torch.randn(2, len(LABELS), CLASSES, generator=generator)
    return Batch(logits.requires_grad_(), torch.tensor(LABELS), torch.tensor(SELECTION), torch.tensor(FORGET), frozen)


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(math.exp(value) for value in row))
    return [value - total for value in row]


def cross_entropies(b: Batch) -> list[float]:
    return [-log_softmax(row)[label] for row, label in zip(b.logits.tolist(), LABELS, strict=True)]


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def of(values: list[float], forget: bool) -> list[float]:
    return [value for value, is_forget in zip(values, FORGET, strict=True) if is_forget == forget]


def by_hand(name: str, b: Batch) -> tuple[float, float]:
    ce = cross_entropies(b)
    retain = mean(of(ce, False))
    if name == "masked-distillation":
        divergences = []
        for logits, frozen, selected in zip(b.logits.tolist(), b.frozen.tolist(), SELECTION, strict=True):
            kept = [c for c in range(CLASSES) if c not in selected]
            target = dict(zip(kept, map(math.exp, log_softmax([frozen[c] for c in kept])), strict=True))
            own = log_softmax(logits)
            divergences.append(sum(p * (math.log(p) - own[c]) for c, p in target.items()))
        return mean(of(divergences, False)), mean(of(divergences, True))
    forgotten = of(ce, True)
    labels = [label for label, is_forget in zip(LABELS, FORGET, strict=True) if is_forget]
    classes = [[v for v, label in zip(forgotten, labels, strict=True) if label == c] for c in sorted(set(labels))]
    uniform = [-mean(log_softmax(row)) - math.log(CLASSES) for row in b.logits.tolist()]
    return retain, {
        "inverse-ce": 1 / mean(forgotten),
        "inverse-ce-per-class": mean(1 / mean(values) for values in classes),
        "inverse-ce-per-sample": mean(1 / (value + 0.1) for value in forgotten),
        "negative-ce": mean(-min(value, 5.0) for value in forgotten),
        "kl-uniform": mean(of(uniform, True)),
    }[name]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", objective_names())
def test_formula(name, seed):
    b = batch(seed)
    terms = get_objective(name).terms(b)
    retain, forget = by_hand(name, b)
    assert terms.retain.item() == pytest.approx(retain, rel=1e-5)
    assert terms.forget.item() == pytest.approx(forget, rel=1e-4)


@pytest.mark.parametrize("name", objective_names())
def test_terms_are_means_of_their_own(name):
    b = batch()
    more = torch.tensor([0, 1, 2, 3, 4, 5, 6, 4, 5, 6])
    repeated = Batch(b.logits[more], b.labels[more], b.selection[more], b.forget[more], b.frozen[more])
    torch.testing.assert_close(get_objective(name).terms(repeated), get_objective(name).terms(b))


@pytest.mark.parametrize("name", objective_names())
@pytest.mark.parametrize("kind", [True, False])
def test_a_batch_of_one_kind_leaves_the_other_term_zero(name, kind):
    b = batch()
    only = Batch(b.logits, b.labels, b.selection, torch.full_like(b.forget, kind), b.frozen)
    terms = get_objective(name).terms(only)
    absent, present = (terms.retain, terms.forget) if kind else (terms.forget, terms.retain)
    assert absent.item() == 0 and present.item() != 0
    terms.retain.add(terms.forget).backward()
    assert b.logits.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name in objective_names() if name != "masked-distillation"])
def test_certain_samples_keep_the_loss_finite(name):
    b = batch()
    logits = torch.full_like(b.logits, -100.0).scatter(1, b.labels.unsqueeze(1), 100.0).requires_grad_()
    terms = get_objective(name).terms(Batch(logits, b.labels, b.selection, b.forget))
    terms.forget.backward()
    assert terms.forget.isfinite() and logits.grad.isfinite().all()


def test_masked_target_keeps_the_proportions_of_the_others():
    frozen = batch().frozen
    target = masked_target(frozen, torch.tensor(SELECTION))
    torch.testing.assert_close(target.sum(1), torch.ones(len(LABELS)))
    plain = frozen.softmax(1)
    for row, selected in enumerate(SELECTION):
        kept = [c for c in range(CLASSES) if c not in selected]
        assert all(target[row, c] == 0 for c in selected if c >= 0)
        torch.testing.assert_close(target[row, kept], plain[row, kept] / plain[row, kept].sum())


def test_raised_logits_are_those_of_the_selected_classes():
    logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    selection = torch.tensor([[0, -1], [2, 0], [-1, -1]])
    expected = torch.tensor([[6.0, 2.0, 3.0], [6.0, 2.0, 8.0], [1.0, 2.0, 3.0]])
    assert torch.equal(raised(logits, selection, 5.0), expected)
    assert raised(logits, selection, 0.0) is logits


def test_masked_target_refuses_a_set_of_all_classes():
    frozen = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert masked_target(frozen, torch.tensor([[0, 1, 1], [2, 1, -1]])).isfinite().all()
    with pytest.raises(SelectionError, match="covers all 3 classes.*at most 2"):
        masked_target(frozen, torch.tensor([[0, 1, -1], [2, 1, 0]]))


def test_the_per_class_inverse_sees_a_lagging_class_that_the_mean_hides():
    logits = torch.zeros(4, 3)
    logits[0, 0] = 8.0
    logits[1:, 0] = 30.0
    labels = torch.tensor([0, 1, 1, 2])
    b = Batch(logits, labels, labels.unsqueeze(1), torch.ones(4, dtype=torch.bool))
    assert get_objective("inverse-ce").terms(b).forget < 0.05
    assert get_objective("inverse-ce-per-class").terms(b).forget > 100


def test_negative_ce_stops_at_its_cap():
    logits = torch.tensor([[0.0, 4.0], [0.0, 6.0]], requires_grad=True)
    labels = torch.tensor([0, 0])
    b = Batch(logits, labels, labels.unsqueeze(1), torch.ones(2, dtype=torch.bool))
    get_objective("negative-ce").terms(b).forget.backward()
    assert logits.grad[0].abs().max() > 0 and logits.grad[1].abs().max() == 0


def test_gate_penalty_is_the_mean_over_all_entries():
    memories = [torch.tensor([[0.0, 2.0]]), torch.tensor([[-1.0], [3.0]])]
    expected = mean(1 - 1 / (1 + math.exp(-a)) for a in (0.0, 2.0, -1.0, 3.0))
    assert gate_penalty(memories, "sigmoid").item() == pytest.approx(expected, rel=1e-6)
    assert gate_penalty(memories, "identity").item() == pytest.approx((1 + 1 + 2 + 2) / 4)


def test_weighted_sum():
    losses = weighted(Terms(torch.tensor(2.0), torch.tensor(3.0)), torch.tensor(5.0), (1.0, 0.5, 0.1))
    assert losses.total.item() == pytest.approx(2.0 + 1.5 + 0.5)
    assert (losses.retain, losses.forget, losses.gates) == (2.0, 3.0, 5.0)


def test_unknown_name():
    with pytest.raises(RunError, match="'inverse'.*'masked-distillation', 'inverse-ce'"):
        get_objective("inverse")
    assert objective_names()[0] == "masked-distillation"
