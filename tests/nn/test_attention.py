"""Attention with modulated projections equals the library's, and gates by sample in every input order."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from memmod import ModulatedMultiheadAttention, modulate
from memmod.errors import ModelError
from memmod.nn.window_attention import ModulatedWindowAttention
from memmod.surgery.random_weights import randomise

B, L, S, E, H = 3, 5, 7, 8, 2


def pair(batch_first: bool = True, bias: bool = True) -> tuple[nn.MultiheadAttention, ModulatedMultiheadAttention]:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(E, H, bias=bias, batch_first=batch_first).eval()
    if bias:
        nn.init.normal_(plain.in_proj_bias)
        nn.init.normal_(plain.out_proj.bias)
    return plain, ModulatedMultiheadAttention.from_multihead_attention(plain, 4)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["self", "cross", "separate"])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("masks", ["none", "attn", "padding", "both"])
def test_equals_the_library(batch_first: bool, bias: bool, kind: str, need_weights: bool, masks: str) -> None:
    plain, ours = pair(batch_first, bias)
    query = torch.randn((B, L, E) if batch_first else (L, B, E))
    key = query if kind == "self" else torch.randn((B, S, E) if batch_first else (S, B, E))
    value = torch.randn_like(key) if kind == "separate" else key
    length = L if kind == "self" else S
    options: dict = {"need_weights": need_weights}
    if masks in ("attn", "both"):
        options["attn_mask"] = torch.randn(L, length) if masks == "attn" else torch.randn(B * H, L, length)
    if masks in ("padding", "both"):
        padding = torch.zeros(B, length, dtype=torch.bool)
        padding[1, -2:] = True
        options["key_padding_mask"] = (
            padding if masks == "padding" else torch.zeros(B, length).masked_fill(padding, -1e9)
        )
    for average in (True, False):
        expected = plain(query, key, value, average_attn_weights=average, **options)
        got = ours(query, key, value, average_attn_weights=average, **options)
        torch.testing.assert_close(got[0], expected[0])
        if need_weights:
            torch.testing.assert_close(got[1], expected[1])
        else:
            assert got[1] is None


def test_unbatched() -> None:
    plain, ours = pair()
    x = torch.randn(L, E)
    torch.testing.assert_close(ours(x, x, x), plain(x, x, x))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["self", "cross"])
def test_gates_by_sample(batch_first: bool, kind: str) -> None:
    _, ours = pair(batch_first)
    with torch.no_grad():
        for _, memory in [*ours.in_proj.memories(), *ours.out_proj.memories()]:
            memory.normal_()
    batch = 0 if batch_first else 1
    query = torch.randn((B, L, E) if batch_first else (L, B, E))
    key = query if kind == "self" else torch.randn_like(query)
    nothing, _ = ours(query, key, key, index=torch.tensor([-1, -1, -1]))
    mixed, _ = ours(query, key, key, index=torch.tensor([-1, 2, -1]))
    alone, _ = ours(query, key, key, index=torch.tensor([2]))
    same = (nothing == mixed).movedim(batch, 0).flatten(1).all(1)
    assert same.tolist() == [True, False, True]
    torch.testing.assert_close(mixed.select(batch, 1), alone.select(batch, 1))
    mixed.sum().backward()
    for layer in (ours.in_proj, ours.out_proj):
        assert layer.memory.grad[2].any() and not layer.memory.grad[[0, 1, 3]].any()


def test_no_equivalent_is_refused_with_the_reason() -> None:
    for options, text in (
        ({"kdim": 4}, "kdim"),
        ({"add_bias_kv": True}, "add_bias_kv"),
        ({"add_zero_attn": True}, "add_zero"),
    ):
        attention = nn.MultiheadAttention(E, H, **options)
        with pytest.raises(ModelError, match=text):
            ModulatedMultiheadAttention.from_multihead_attention(attention, 4)


class Encoder(nn.Module):
    def __init__(self, batch_first: bool, **options) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(E, H, 16, dropout=0.0, batch_first=batch_first, **options)
        self.batch_first = batch_first
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(E, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.encoder(x if self.batch_first else x.transpose(0, 1))
        return self.head(rows.mean(1 if self.batch_first else 0))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("options", [{}, {"norm_first": True}])
def test_encoder_layers_lose_their_fast_path(options: dict, grad: bool) -> None:
    base = randomise(Encoder(True, **options)).eval()
    x = torch.randn(3, L, E)
    wf = modulate(base, example_input=x)
    assert sum(row.action == "gated" for row in wf.summary().rows) == 8
    wf.verify(x)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(wf(x, forget=-1), base(x))
        baked = wf.bake(1)
        torch.testing.assert_close(baked(x), wf(x, forget=1))
    assert type(baked.encoder.layers[0].self_attn) is nn.MultiheadAttention
    assert baked.encoder.layers[0].activation_relu_or_gelu == base.encoder.layers[0].activation_relu_or_gelu


def test_sequence_first_encoder_gates_what_is_sample_major() -> None:
    base = randomise(Encoder(False)).eval()
    x = torch.randn(3, L, E)
    wf = modulate(base, example_input=x)
    skipped = {row.name for row in wf.summary().rows if "not samples" in row.reason}
    assert skipped == {f"encoder.layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)}
    wf.verify(x)
    torch.testing.assert_close(wf.bake(1)(x), wf(x, forget=1))


def test_attention_without_an_equivalent_is_listed() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(E, E)
            self.attention = nn.MultiheadAttention(E, H, add_zero_attn=True, batch_first=True)
            self.head = nn.Linear(E, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            return self.head(self.attention(x, x, x)[0].mean(1))

    wf = modulate(randomise(Model()), example_input=torch.randn(2, L, E))
    reasons = {row.name: row.reason for row in wf.summary().rows if row.action == "skipped"}
    assert "add_zero_attn" in reasons["attention"] and "without calling it" in reasons["attention.out_proj"]
    wf.verify(torch.randn(2, L, E))


@pytest.mark.parametrize("cls", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
@pytest.mark.parametrize("shift", [(0, 0), (2, 2), (2, 0)])
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (4, 9)])
def test_window_attention_equals_torchvision(cls, shift: tuple[int, int], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    plain = cls(8, [4, 4], list(shift), 2).eval()
    nn.init.normal_(plain.qkv.bias)
    ours = ModulatedWindowAttention(plain, 5)
    x = torch.randn(3, *size, 8)
    torch.testing.assert_close(ours(x), plain(x))
    again = ours.to_window_attention(ours.qkv, ours.proj)
    assert type(again) is cls
    torch.testing.assert_close(again(x), plain(x))
    ours.qkv.state = ours.proj.state = None
    gated = ours.qkv(torch.randn(6, 4, 8), torch.tensor([0, -1, 3]))
    assert gated.shape == (6, 4, 24)
