"""Squeeze-excite is found by what it does, whatever its class is called."""

from __future__ import annotations

import logging

import pytest
import timm
import torch
from torch import Tensor, nn

import memmod.surgery.plan
from memmod import ModulateConfig, ModulatedModel, modulate
from memmod.surgery.random_weights import randomise

REASON = "inside squeeze-excite"


class Block(nn.Module):
    """A map [B, 8, H, W] scaled as `scale` says by a branch of two layers."""

    def __init__(self, scale, layer=nn.Conv2d) -> None:
        super().__init__()
        extra = (1,) if layer is nn.Conv2d else ()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.fc1, self.fc2 = layer(8, 8, *extra), layer(8, 8, *extra)
        self.scale = scale
        self.head = nn.Linear(8, 5)
        randomise(self).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.scale(self, self.stem(x)).mean((2, 3)))


def branch(net: Block, pooled: Tensor) -> Tensor:
    return net.fc2(net.fc1(pooled).relu()).sigmoid()


def in_place(net: Block, x: Tensor) -> Tensor:
    return x.mul_(branch(net, x.mean((2, 3), keepdim=True)))


def with_residual(net: Block, x: Tensor) -> Tensor:
    gate = branch(net, x.mean((2, 3), keepdim=True))
    return x + 2.0 * (gate * x)


def expanded(net: Block, x: Tensor) -> Tensor:
    return x * branch(net, x.mean((2, 3), keepdim=True)).expand_as(x)


def two_pools(net: Block, x: Tensor) -> Tensor:
    pools = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return x * (net.fc2(net.fc1(pools[0]).relu()) + net.fc2(net.fc1(pools[1]).relu())).sigmoid()


def linear(net: Block, x: Tensor) -> Tensor:
    return x * branch(net, nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))[:, :, None, None]


def channels_last(net: Block, x: Tensor) -> Tensor:
    x = x.permute(0, 2, 3, 1)
    return (x * branch(net, x.mean((1, 2), keepdim=True))).permute(0, 3, 1, 2)


def tokens(net: Block, x: Tensor) -> Tensor:
    rows = x.flatten(2).transpose(1, 2)
    return (rows * branch(net, rows.mean(1, keepdim=True))).transpose(1, 2).view_as(x)


@pytest.mark.parametrize(
    ("scale", "layer"),
    [
        (lambda net, x: x * branch(net, x.mean((2, 3), keepdim=True)), nn.Conv2d),
        (lambda net, x: torch.mul(branch(net, nn.AdaptiveAvgPool2d(1)(x)), x), nn.Conv2d),
        (in_place, nn.Conv2d),
        (with_residual, nn.Conv2d),
        (expanded, nn.Conv2d),
        (two_pools, nn.Conv2d),
        (linear, nn.Linear),
        (channels_last, nn.Linear),
        (tokens, nn.Linear),
    ],
    ids=["mul", "reversed", "in place", "residual", "expanded", "two pools", "linear", "channels last", "tokens"],
)
@pytest.mark.parametrize("side", [1, 6])
def test_branches_that_scale_channels(scale, layer, side: int) -> None:
    # Without positions, channels last and tokens are an ordinary product of vectors.
    side = 6 if scale in (channels_last, tokens) else side
    x = torch.randn(3, 3, side, side)
    wf = modulate(Block(scale, layer), example_input=x)
    reasons = {row.name: row.reason for row in wf.summary().rows}
    assert reasons["fc1"] == reasons["fc2"] == REASON and reasons["stem"] != REASON
    wf.verify(x)


def by_pixel(net: Block, x: Tensor) -> Tensor:
    return x * branch(net, x).mean(1, keepdim=True)


def gated_unit(net: Block, x: Tensor) -> Tensor:
    return net.fc1(x) * net.fc2(x).sigmoid()


def vectors(net: Block, x: Tensor) -> Tensor:
    pooled = x.mean((2, 3))
    return (net.fc1(pooled) * net.fc2(pooled).sigmoid())[:, :, None, None]


def one_token(net: Block, x: Tensor) -> Tensor:
    rows = x.flatten(2).transpose(1, 2)
    return (rows * branch(net, rows[:, :1])).transpose(1, 2).view_as(x)


def by_token(net: Block, x: Tensor) -> Tensor:
    rows = x.flatten(2).transpose(1, 2)
    return (rows * branch(net, rows).mean(2, keepdim=True)).transpose(1, 2).view_as(x)


def added(net: Block, x: Tensor) -> Tensor:
    return x + branch(net, x.mean((2, 3), keepdim=True))


@pytest.mark.parametrize(
    ("scale", "layer"),
    [
        (by_pixel, nn.Conv2d),
        (gated_unit, nn.Conv2d),
        (vectors, nn.Linear),
        (one_token, nn.Linear),
        (by_token, nn.Linear),
        (added, nn.Conv2d),
        (lambda net, x: branch(net, x) * net.head.weight[:1, :, None, None], nn.Conv2d),
    ],
    ids=["by pixel", "gated unit", "vectors", "one token", "by token", "added", "layer scale"],
)
def test_products_that_are_no_squeeze_excite(scale, layer) -> None:
    x = torch.randn(3, 3, 6, 6)
    wf = modulate(Block(scale, layer), example_input=x, config=ModulateConfig(fold=False))
    assert REASON not in {row.reason for row in wf.summary().rows}
    wf.verify(x)


def test_a_name_alone_says_nothing() -> None:
    kind = type("SqueezeExcite", (Block,), {})
    x = torch.randn(2, 3, 6, 6)
    rows = modulate(kind(gated_unit), example_input=x).summary().rows
    assert REASON not in {row.reason for row in rows}


def test_memory_files_that_gate_such_layers_load(tmp_path, monkeypatch) -> None:
    base, x = Block(with_residual), torch.randn(2, 3, 6, 6)
    path = tmp_path / "memory.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(memmod.surgery.plan, "squeeze_excite_layers", lambda model, observation: set())
        wf = modulate(base, example_input=x)
    wf.save_memory(path)
    again = ModulatedModel.from_file(base, path, x)
    assert [name for name, _ in again.named_memories()] == ["stem.memory", "fc1.memory", "fc2.memory"]


@pytest.mark.parametrize(
    ("name", "squeezed", "side"),
    [
        ("legacy_seresnet18", 16, 64),
        ("seresnet18", 16, 64),
        ("mobilenetv3_small_050", 18, 32),
        ("regnety_002", 26, 64),
        ("tinynet_e", 20, 64),
        ("ese_vovnet19b_dw", 4, 64),
        ("resnest14d", 8, 64),
        ("hgnet_tiny", 5, 64),
        ("resnet18", 0, 64),
        ("poolformer_s12", 0, 64),
    ],
)
def test_timm_networks(name: str, squeezed: int, side: int, caplog) -> None:
    torch.manual_seed(0)
    base = randomise(timm.create_model(name, num_classes=5)).eval()
    with caplog.at_level(logging.WARNING):
        wf = modulate(base, example_input=torch.randn(2, 3, side, side))
    reasons = [row.reason for row in wf.summary().rows]
    assert reasons.count(REASON) == squeezed
    assert not caplog.records, "more than half of the weights are gated"


def test_legacy_squeeze_excite_networks_are_gated_and_verify() -> None:
    torch.manual_seed(0)
    base = randomise(timm.create_model("legacy_seresnet18", num_classes=5)).eval()
    x = torch.randn(2, 3, 64, 64)
    wf = modulate(base, example_input=x)
    kept = {row.name for row in wf.summary().rows if row.action == "skipped"}
    assert all(name == "last_linear" or ".se_module." in name for name in kept)
    wf.verify(x)
