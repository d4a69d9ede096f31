"""The example input: constant, whole numbers, masks, not finite; and models whose output is random."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memmod import modulate
from memmod.errors import ModelError
from memmod.surgery.example import Example
from memmod.surgery.random_weights import randomise

X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.mix = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)
        randomise(self).eval()

    def features(self, x: Tensor) -> Tensor:
        return self.mix(self.bn(self.conv(x)).relu())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 4, 6, 6),
        torch.ones(2, 4, 6, 6),
        torch.full((2, 4, 6, 6), 255.0),
        torch.full((2, 4, 6, 6), -1e-4),
        torch.zeros(1).expand(2, 4, 6, 6),
        torch.randn(1, 4, 6, 6).expand(2, 4, 6, 6),
        torch.randn(1, 4, 6, 6).repeat(3, 1, 1, 1),
        torch.zeros(2, 4, 6, 6).to(memory_format=torch.channels_last),
    ],
    ids=["zeros", "ones", "255", "small", "stride 0", "expanded", "alike", "channels last"],
)
def test_constant_examples(x: Tensor) -> None:
    before = x.clone()
    wf = modulate(Net(), example_input=x)
    assert [row.action for row in wf.summary().rows if row.name in ("conv", "mix")] == ["gated", "gated"]
    wf.verify(X)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_constant_example_of_another_dtype(dtype: torch.dtype) -> None:
    example = Example.of(torch.zeros(2, 8, dtype=dtype))
    changed = example.with_sample_changed(1).args[0]
    assert changed.dtype == dtype and not changed[0].any() and changed[1].all()


class Tokens(nn.Module):
    """Embeds ids of a table of 7 rows; an id out of range is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc, self.head = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        randomise(self).eval()

    def forward(self, ids: Tensor, mask: Tensor | None = None, kind: Tensor | None = None) -> Tensor:
        x = self.fc(self.table(ids)).relu()
        mask = torch.ones_like(ids) if mask is None else mask
        if kind is not None:
            x = x + F.embedding(kind, torch.ones(1, 6))
        return self.head((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


@pytest.mark.parametrize(
    "example",
    [
        torch.zeros(2, 5, dtype=torch.int64),
        torch.full((2, 5), 6),
        torch.tensor([[1, 2, 1], [1, 2, 1]]),
        torch.tensor([[1, 1], [2, 2]]),
        torch.zeros(2, 5, dtype=torch.int32),
        {"ids": torch.zeros(2, 5, dtype=torch.int64), "mask": torch.ones(2, 5)},
        {"ids": torch.zeros(2, 5, dtype=torch.int64), "mask": torch.ones(2, 5, dtype=torch.bool)},
        {"ids": torch.full((2, 5), 3), "kind": torch.zeros(2, 5, dtype=torch.int64)},
    ],
    ids=["zeros", "last", "palindrome", "constant rows", "int32", "mask", "bool mask", "kinds"],
)
def test_whole_numbers_stay_in_range(example) -> None:
    wf = modulate(Tokens(), example_input=example)
    rows = {row.name: row.action for row in wf.summary().rows}
    assert rows == {"table": "skipped", "fc": "gated", "head": "skipped"}
    wf.verify(example)


def test_a_mask_as_the_input_itself() -> None:
    class Mask(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(5, 6), nn.Linear(6, 3)
            randomise(self)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.fc(x.float()))

    modulate(Mask(), example_input=torch.ones(2, 5, dtype=torch.bool)).verify(torch.eye(5) > 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_examples_that_are_not_finite(value: float) -> None:
    x = X.clone()
    x[2, 0, 0, 0] = value
    with pytest.raises(ModelError, match="holds NaN or infinite values"):
        modulate(Net(), example_input=x)


def test_samples_without_content() -> None:
    with pytest.raises(ModelError, match=r"shape \(2, 0\), so it has no content"):
        modulate(nn.Sequential(nn.Linear(0, 4), nn.Linear(4, 3)), example_input=torch.zeros(2, 0))


def test_a_layer_that_the_change_does_not_reach_has_the_true_reason() -> None:
    class Dead(Net):
        def features(self, x: Tensor) -> Tensor:
            return self.mix((self.conv(x) - 1e6).relu())

    wf = modulate(Dead(), example_input=X)
    rows = {row.name: row for row in wf.summary().rows}
    assert rows["conv"].action == "gated" and rows["mix"].action == "skipped"
    assert "stayed the same when a sample of the example changed" in rows["mix"].reason


def test_verify_says_that_its_example_is_constant() -> None:
    base = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 3))
    wf = modulate(base, example_input=torch.zeros(2, 4))
    wf.verify(torch.randn(2, 4))
    with pytest.raises(ModelError, match="this example is constant"):
        wf.verify(torch.zeros(2, 4))


class Dropping(Net):
    def features(self, x: Tensor) -> Tensor:
        return F.dropout(super().features(x), 0.3)


class Noisy(Net):
    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        return x + torch.randn_like(x) * torch.rand(())


class Python(Net):
    def features(self, x: Tensor) -> Tensor:
        return super().features(x) * random.random()


class Numpy(Net):
    def features(self, x: Tensor) -> Tensor:
        return super().features(x) * np.random.rand()


@pytest.mark.parametrize("kind", [Dropping, Noisy, Python, Numpy])
def test_random_models_work_with_fixed_draws_and_say_so(kind, caplog) -> None:
    base = kind()
    assert not torch.equal(base(X), base(X))
    torch.manual_seed(7)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with caplog.at_level(logging.WARNING):
        wf = modulate(base, example_input=X)
    assert f"{kind.__name__} draws random numbers in eval mode" in caplog.text
    assert {row.name: row.action for row in wf.summary().rows} == {
        "conv": "gated",
        "bn": "folded",
        "mix": "gated",
        "head": "skipped",
    }
    wf.verify(X)
    assert torch.equal(torch.get_rng_state(), states[0]), "the caller's draws stay the caller's"
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert not torch.equal(wf(X), wf(X)), "the model stays as random as its base"


def test_ordinary_models_draw_nothing(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        modulate(Net(), example_input=X)
    assert not caplog.records


class Counting(Net):
    calls = 0

    def features(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().features(x) * self.calls


class OwnGenerator(Net):
    generator = torch.Generator()

    def features(self, x: Tensor) -> Tensor:
        return super().features(x) + torch.randn(1, generator=self.generator)


@pytest.mark.parametrize("kind", [Counting, OwnGenerator])
def test_what_no_seed_fixes_is_the_reason(kind) -> None:
    with pytest.raises(ModelError, match=f"the output of {kind.__name__} is random, or depends on earlier calls"):
        modulate(kind(), example_input=X)
