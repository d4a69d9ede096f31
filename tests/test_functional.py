"""The functions that the modules call: checks, padding by name, autocast, and the plain layer without a selection."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F

from memmod import functional
from memmod.errors import SelectionError
from memmod.ops import autocast, dispatch


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, W, B, MEMORY, INPUT_MEMORY = randn(6, 4), randn(3, 4, seed=1), randn(3, seed=2), randn(5, 3, seed=3), randn(5, 4)
INDEX = torch.tensor([0, -1, 2, 4, 4, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": torch.tensor([0, 1, 5, 0, 0, 0])}, "class 5 was selected, but the memory has 5 classes: use 0 to 4"),
        ({"index": torch.tensor([0, 1, -2, 0, 0, 0])}, "class -2 was selected"),
        ({"index": INDEX.int()}, "dtype torch.int32; it must be torch.int64: pass index.long()"),
        ({"index": INDEX.float()}, "dtype torch.float32; it must be torch.int64"),
        ({"index": torch.tensor(3)}, r"index has shape \(\); it must be \[B\]"),
        ({"index": torch.zeros(6, 1, 1, dtype=torch.int64)}, r"shape \(6, 1, 1\); it must be \[B\]"),
        ({"index": 3}, "index is a int; it must be an int64 tensor"),
        ({"index": INDEX.to("meta")}, "index is on meta, but x on cpu"),
        ({"index": INDEX[:4]}, "x has 6 rows, not a multiple of the 4 samples of index"),
        ({"index": INDEX[:0]}, "x has 6 rows, not a multiple of the 0 samples of index"),
        ({"memory": randn(5, 4)}, r"memory has shape \(5, 4\); the layer has 3 units, so it must be \[classes, 3\]"),
        ({"memory": randn(5)}, r"memory has shape \(5,\)"),
        ({"memory": randn(0, 3)}, r"memory has shape \(0, 3\)"),
        ({"memory": MEMORY.bfloat16()}, "memory has dtype torch.bfloat16; keep it in torch.float32"),
        ({"memory": MEMORY.to("meta")}, "memory is on meta, but x on cpu"),
        ({"input_memory": randn(5, 3)}, r"input_memory has shape \(5, 3\); the layer has 4 inputs"),
        ({"input_memory": randn(7, 4)}, "memory has 5 classes, but input_memory 7"),
        ({"gate": "tanh"}, "gate is 'tanh'; it must be one of 'sigmoid', 'identity', 'hard'"),
        ({"keep": "input"}, "keep is 'input'; it must be one of 'output', 'gated'"),
        ({"keep": "input", "index": None}, "keep is 'input'"),
        ({"x": randn(4)}, r"x has shape \(4,\); with a selection it must be \[rows, ..., features\]"),
    ],
    ids=lambda v: str(v) if isinstance(v, str) else "-".join(v),
)
def test_worded_errors(changes, message):
    call = {"x": X, "weight": W, "bias": B, "memory": MEMORY, "index": INDEX, "input_memory": INPUT_MEMORY, **changes}
    with pytest.raises(SelectionError, match=message):
        functional.modulated_linear(**call)


def test_worded_errors_of_conv_and_output():
    x, w = randn(6, 4, 5, 5), randn(3, 2, 3, 3)
    with pytest.raises(SelectionError, match=r"it must be \[rows, channels, height, width\]"):
        functional.modulated_conv2d(x[0], w, None, MEMORY, INDEX, groups=2)
    with pytest.raises(SelectionError, match=r"input_memory has shape \(5, 3\); the layer has 4 inputs"):
        functional.modulated_conv2d(x, w, None, MEMORY, INDEX, input_memory=MEMORY, groups=2)
    with pytest.raises(ValueError, match=r"padding='same' is not supported with stride \(2, 2\)"):
        functional.modulated_conv2d(x, w, None, MEMORY, INDEX, groups=2, padding="same", stride=2)
    with pytest.raises(ValueError, match="padding is 'full'"):
        functional.modulated_conv2d(x, w, None, MEMORY, INDEX, groups=2, padding="full")
    for dim in (0, 4, -4, -5):
        with pytest.raises(SelectionError, match=f"dim is {dim}, but the channels of x"):
            functional.modulate_output(x, MEMORY, INDEX, dim=dim)
    with pytest.raises(SelectionError, match=r"memory has shape \(5, 3\); the layer has 4 units"):
        functional.modulate_output(x, MEMORY, INDEX)


def test_without_selection_or_memory_it_is_the_plain_layer():
    x = randn(6, 4, 5, 5)
    kernel = randn(3, 4, 3, 3)
    assert torch.equal(functional.modulated_linear(X, W, B, MEMORY), F.linear(X, W, B))
    assert torch.equal(functional.modulated_linear(X, W, B, index=INDEX), F.linear(X, W, B))
    assert torch.equal(functional.modulated_linear(X[0], W, B, MEMORY), F.linear(X[0], W, B))
    plain = F.conv2d(x, kernel, B, padding="same")
    assert torch.equal(functional.modulated_conv2d(x, kernel, B, MEMORY, padding="same"), plain)
    assert functional.modulate_output(x, MEMORY, None) is x


def test_nothing_forgotten_equals_the_plain_layer_and_a_class_does_not():
    nothing = torch.full((6,), -1)
    torch.testing.assert_close(functional.modulated_linear(X, W, B, MEMORY, nothing), F.linear(X, W, B))
    y = functional.modulated_linear(X, W, B, MEMORY, INDEX)
    torch.testing.assert_close(y[1], F.linear(X, W, B)[1])
    assert not torch.allclose(y[0], F.linear(X, W, B)[0])


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (2, 5), (4, 3)])
@pytest.mark.parametrize("dilation", [1, (2, 1), 3])
@pytest.mark.parametrize("padding", ["same", "valid", 1, (2, 0), [0, 1]])
def test_padding_as_in_torch(kernel, dilation, padding):
    x, w, nothing = randn(2, 4, 15, 14), randn(3, 4, *kernel), torch.tensor([-1, -1])
    got = functional.modulated_conv2d(x, w, B, MEMORY, nothing, padding=padding, dilation=dilation)
    torch.testing.assert_close(got, F.conv2d(x, w, B, padding=padding, dilation=dilation))


@pytest.mark.parametrize("gate", ["sigmoid", "identity"])
@pytest.mark.parametrize("gate_bias", [True, False])
def test_keep_gated_survives_in_place_changes(gate, gate_bias):
    def gradients(keep, change):
        leaves = [t.clone().requires_grad_() for t in (X, MEMORY, INPUT_MEMORY)]
        x, memory, input_memory = leaves
        y = functional.modulated_linear(
            x, W, B, memory, INDEX, input_memory=input_memory, gate=gate, gate_bias=gate_bias, keep=keep
        )
        return torch.autograd.grad(change(y), leaves, randn(6, 3, seed=7))

    for kept, plain in zip(
        gradients("gated", lambda y: y.add_(1).relu_()), gradients("output", lambda y: (y + 1).relu()), strict=True
    ):
        assert torch.equal(kept, plain)


def test_in_place_change_names_keep():
    memory = MEMORY.clone().requires_grad_()
    y = functional.modulated_linear(X, W, B, memory, INDEX)
    y += 1
    with pytest.raises(RuntimeError, match='keep="gated"'):
        y.sum().backward()


def test_nothing_is_kept_without_grad(monkeypatch):
    monkeypatch.setattr(dispatch, "_forced", "reference")
    kept = []
    keeps = functional._keeps
    monkeypatch.setattr(functional, "_keeps", lambda *args: kept.append(keeps(*args)) or kept[-1])
    memory = MEMORY.clone().requires_grad_()
    functional.modulated_linear(X, W, B, memory, INDEX, gate_bias=False, keep="gated")
    with torch.no_grad():
        functional.modulated_linear(X, W, B, memory, INDEX, gate_bias=False, keep="gated")
    functional.modulated_linear(X, W, B, MEMORY, INDEX, gate_bias=False, keep="gated")
    assert kept == [True, False, False]


def test_selection_made_in_inference_mode():
    with torch.inference_mode():
        index = INDEX.clone()
        assert functional.modulated_linear(X, W, B, MEMORY, index).is_inference()
    memory = MEMORY.clone().requires_grad_()
    for call in (
        lambda i: functional.modulated_linear(X, W, B, memory, i),
        lambda i: functional.modulate_output(X, INPUT_MEMORY.clone().requires_grad_(), i),
    ):
        call(index).sum().backward()
    expected = torch.autograd.grad(functional.modulated_linear(X, W, B, memory, INDEX).sum(), memory)[0]
    assert torch.equal(memory.grad, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_all_but_the_memories(dtype):
    leaves = [t.clone().requires_grad_() for t in (X, W, B, MEMORY, INPUT_MEMORY)]
    x, w, b, memory, input_memory = leaves
    with torch.autocast("cpu", dtype=dtype):
        y = functional.modulated_linear(x, w, b, memory, INDEX, input_memory=input_memory)
        gradients = torch.autograd.grad(y.float().square().sum(), leaves)
    cast = functional.modulated_linear(x.to(dtype), w.to(dtype), b.to(dtype), memory, INDEX, input_memory=input_memory)
    assert y.dtype == dtype
    assert torch.equal(y, cast)
    assert [g.dtype for g in gradients] == [torch.float32] * 5
    for got, expected in zip(gradients, torch.autograd.grad(cast.float().square().sum(), leaves), strict=True):
        assert torch.equal(got, expected)


def test_autocast_of_conv_and_output():
    x, w = randn(6, 4, 5, 5), randn(3, 4, 2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = functional.modulated_conv2d(x, w, B, MEMORY, INDEX, padding="same")
        same = functional.modulate_output(x, INPUT_MEMORY, INDEX)
        double = functional.modulated_linear(X.double(), W.double(), B.double(), MEMORY, INDEX)
    cast = functional.modulated_conv2d(x.bfloat16(), w.bfloat16(), B.bfloat16(), MEMORY, INDEX, padding="same")
    assert torch.equal(y, cast)
    assert same.dtype == torch.float32
    assert double.dtype == torch.float64


def test_autocast_keeps_the_copy_of_a_frozen_weight():
    frozen, learned = W.clone(), W.clone().requires_grad_()

    def copy(weight, dtype=torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype):
            return autocast.cast(X, weight, None)[1]

    with torch.inference_mode():
        first = copy(frozen)
    assert not first.is_inference()
    assert copy(frozen) is first
    assert copy(learned) is not copy(learned)
    assert copy(frozen, torch.float16).dtype == torch.float16
    assert torch.equal(copy(frozen), W.bfloat16())
    frozen.mul_(2)
    assert torch.equal(copy(frozen), (2 * W).bfloat16())
    second = copy(frozen)
    frozen.data = W.clone()
    assert torch.equal(copy(frozen), W.bfloat16())
    assert copy(frozen) is not second


def test_autocast_copies_die_with_their_weight():
    weight = W.clone()
    before = len(autocast._copies)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast.cast(X, weight, None)
    assert len(autocast._copies) == before + 1
    del weight
    gc.collect()
    assert len(autocast._copies) == before
