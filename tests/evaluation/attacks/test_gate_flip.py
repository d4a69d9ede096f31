"""Which gates are opened."""

from __future__ import annotations

import math

import torch

from memmod.evaluation.attacks import gate_flip
from tests.evaluation.helpers import half_forgetting


def test_the_most_closed_gates_are_opened():
    wf = half_forgetting()
    before = wf.memory_state()
    row = torch.cat([memory[2] for memory in before.values()])
    count = math.ceil(0.25 * len(row))
    opened = gate_flip.with_open_gates(wf, (2,), 0.25)
    after = torch.cat([memory[2] for memory in opened.memory_state().values()])
    changed = after != row
    assert int(changed.sum()) == count and (after[changed].sigmoid() == 1).all()
    assert row[changed].max() < row[~changed].min()
    for name, memory in opened.memory_state().items():
        assert torch.equal(memory[[0, 1, 3]], before[name][[0, 1, 3]])
        assert torch.equal(wf.memory_state()[name], before[name])


def test_of_a_set_the_product_of_its_gates_counts():
    wf = half_forgetting()
    before = wf.memory_state()
    product = torch.cat([memory[[0, 3]].sigmoid().prod(0) for memory in before.values()])
    opened = gate_flip.with_open_gates(wf, (0, 3), 0.1)
    for c in (0, 3):
        after = torch.cat([memory[c] for memory in opened.memory_state().values()])
        changed = after != torch.cat([memory[c] for memory in before.values()])
        assert product[changed].max() < product[~changed].min()
        assert int(changed.sum()) == math.ceil(0.1 * len(product))


def test_at_least_one_gate_is_opened():
    wf = half_forgetting()
    opened = gate_flip.with_open_gates(wf, (1,), 1e-6)
    pairs = zip(opened.memory_state().values(), wf.memory_state().values(), strict=True)
    assert sum(int((after != before).sum()) for after, before in pairs) == 1
