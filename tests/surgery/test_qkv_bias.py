"""Attention with query and value biases of its own (timm's BEiT, EVA, Swin V2): its qkv is gated, bake undoes it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from memmod import ModulateConfig, modulate
from memmod.files.state_hash import state_sha256
from memmod.surgery.random_weights import randomise

SIZES = {"img_size": 16, "num_classes": 5, "patch_size": 4}
VIT = {**SIZES, "embed_dim": 16, "depth": 2, "num_heads": 2}
SWIN = {**SIZES, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2}
MODELS = {
    "beit": lambda: Beit(**VIT, use_rel_pos_bias=True),
    "beit, bias added behind": lambda: _added_behind(Beit(**VIT)),
    "eva": lambda: Eva(**VIT),
    "eva, bias added behind": lambda: _added_behind(Eva(**VIT)),
    "swinv2": lambda: SwinTransformerV2(**SWIN),
}
X = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def _added_behind(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = True
    return model


def base_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise(MODELS[name]()).eval()


def train(wf) -> None:
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(torch.randn(memory.shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("gate_bias", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_qkv_is_gated_and_comes_back(name: str, gate_bias: bool) -> None:
    base = base_of(name)
    state = {key: value.clone() for key, value in base.state_dict().items()}
    wf = modulate(base, example_input=X, config=ModulateConfig(gate_bias=gate_bias))
    rows = {row.name: row for row in wf.summary().rows}
    qkvs = [key for key, module in base.named_modules() if key.endswith("qkv")]
    assert len(qkvs) == 2 and all(rows[key].action == "gated" for key in qkvs)
    assert all(rows[key.rpartition(".")[0]].action == "replaced" for key in qkvs)
    wf.verify(X)
    torch.testing.assert_close(wf(X, forget=-1), base(X))

    train(wf)
    baked = wf.bake(2)
    torch.testing.assert_close(baked(X), wf(X, forget=2))
    assert not torch.allclose(baked(X), base(X), atol=1e-2)
    # An ordinary network of the base's own architecture: the base's class takes its state.
    other = MODELS[name]().eval()
    other.load_state_dict(baked.state_dict())
    torch.testing.assert_close(other(X), baked(X))
    assert all(torch.equal(value, state[key]) for key, value in base.state_dict().items())
    assert state_sha256(wf.unload()) == wf.base_sha256 and torch.equal(wf.unload()(X), base(X))


def test_a_closed_unit_of_qkv_outputs_nothing() -> None:
    base = base_of("beit")
    wf = modulate(base, example_input=X)
    with torch.no_grad():
        wf.model.blocks[0].attn.qkv.memory[3] = -200.0
    attention = wf.bake(3).blocks[0].attn
    assert not attention.qkv.weight.any() and not attention.q_bias.any() and not attention.v_bias.any()
    assert base.blocks[0].attn.q_bias.any()


def test_a_qkv_that_is_not_to_be_gated_stays_as_it_is() -> None:
    base = base_of("eva")
    wf = modulate(base, example_input=X, config=ModulateConfig(skip=("*.qkv",)))
    train(wf)
    baked = wf.bake(1)
    for own, other in zip(base.blocks, baked.blocks, strict=True):
        assert torch.equal(own.attn.qkv.weight, other.attn.qkv.weight)
        assert torch.equal(own.attn.q_bias, other.attn.q_bias) and torch.equal(own.attn.v_bias, other.attn.v_bias)
    torch.testing.assert_close(baked(X), wf(X, forget=1))


class Attention(nn.Module):
    """Holds its biases apart, and reads the weight of `qkv` whether it has them or not; `k_scale` changes the keys."""

    def __init__(self, reads: str) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 18, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))
        self.reads = reads

    def forward(self, x: Tensor) -> Tensor:
        if self.reads == "always":
            bias = None
            if self.q_bias is not None:
                bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
            qkv = F.linear(x, self.qkv.weight, bias)
        elif self.reads == "needs it":
            qkv = F.linear(x, self.qkv.weight, torch.cat((self.q_bias, self.q_bias, self.v_bias)))
        elif self.q_bias is None:
            qkv = self.qkv(x)
        else:
            # Not what the names say.
            qkv = self.qkv(x) + 2 * torch.cat((self.q_bias, self.q_bias, self.v_bias))
        q, k, v = qkv.chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v)


class Net(nn.Module):
    def __init__(self, *reads: str) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.attention = nn.Sequential(*map(Attention, reads))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(self.first(x)).mean(1))


@pytest.mark.parametrize("reads", ["always", "needs it", "otherwise"])
def test_attention_that_computes_something_else_is_left_alone(reads: str) -> None:
    torch.manual_seed(0)
    base, x = randomise(Net(reads, reads)).eval(), torch.randn(2, 5, 6)
    wf = modulate(base, example_input=x)
    rows = {row.name: row for row in wf.summary().rows}
    assert "attention.0" not in rows and torch.equal(wf.model.attention[0].q_bias, base.attention[0].q_bias)
    row = rows["attention.0.qkv"]
    assert row.action == ("gated" if reads == "otherwise" else "skipped")
    assert ("its weight is read without calling it" in row.reason) == (row.action == "skipped")
    wf.verify(x)
    train(wf)
    torch.testing.assert_close(wf.bake(1)(x), wf(x, forget=1))
    assert torch.equal(wf.unload()(x), base(x))
