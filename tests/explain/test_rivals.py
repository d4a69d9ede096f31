"""Maps by other methods: where a method's answer is known, on grids and tokens, and without captum."""

from __future__ import annotations

import sys

import pytest
import timm
import torch
from torch import Tensor, nn

from memmod import ModulatedModel
from memmod.errors import ModelError, RunError
from memmod.explain.blocks import block_outputs, layer_outputs
from memmod.explain.placement import onto_image
from memmod.explain.rivals import MAPS
from tests.explain.helpers import Small, settle, with_memories

X = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(5))
CLASSES = torch.tensor([0, 3, 1, 4])
TRIVIAL = ("brightness", "smooth random", "random")
CAPTUM = ("Grad-CAM, last block", "Grad-CAM, all layers", "integrated gradients", "occlusion")


def small() -> ModulatedModel:
    torch.manual_seed(0)
    return with_memories(settle(Small()), X)


def vit(**options: object) -> ModulatedModel:
    torch.manual_seed(0)
    network = timm.create_model(
        "vit_tiny_patch16_224", num_classes=5, img_size=32, patch_size=8, in_chans=1, depth=3, **options
    )
    return with_memories(settle(network), torch.randn(2, 1, 32, 32))


def captum() -> None:
    pytest.importorskip("captum", reason="captum is not installed")


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("make", [small, vit], ids=["convolutions", "tokens"])
def test_every_map_is_of_the_images_and_of_each_by_itself(name: str, make) -> None:
    if name in CAPTUM:
        captum()
    wf, x = make(), torch.randn(3, 1, *make().input_shape[1:], generator=torch.Generator().manual_seed(1))
    classes = torch.tensor([0, 3, 1])
    found = MAPS[name](wf, x, classes)
    assert found.shape == (3, *x.shape[-2:]) and found.flatten(1).std(1).min() > 0
    torch.testing.assert_close(MAPS[name](wf, x[1:2], classes[1:2])[0], found[1], rtol=1e-3, atol=1e-5)
    other = MAPS[name](wf, x, (classes + 1) % 5)
    assert torch.equal(found, other) == (name in TRIVIAL)
    assert all(not module._forward_hooks for module in wf.modules())


def linear(weight: Tensor) -> ModulatedModel:
    """One logit Σ w·x over pixels, the other 0; its gated layer passes the image on."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(weight.numel(), 2, bias=False))
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[2].weight.copy_(torch.stack((weight.flatten(), torch.zeros(weight.numel()))))
    return with_memories(network.eval(), torch.randn(2, 1, *weight.shape))


def test_pixels_of_a_linear_network_are_weighed_as_they_are() -> None:
    captum()
    weight = torch.randn(7, 7, generator=torch.Generator().manual_seed(2))
    x, zero = torch.rand(2, 1, 7, 7), torch.zeros(2, dtype=torch.int64)
    expected = weight * (x[:, 0] - x.amin((1, 2, 3)).view(2, 1, 1))
    wf = linear(weight)
    torch.testing.assert_close(MAPS["integrated gradients"](wf, x, zero), expected, rtol=1e-4, atol=1e-5)
    # A seventh of seven pixels is one.
    torch.testing.assert_close(MAPS["occlusion"](wf, x, zero), expected, rtol=1e-4, atol=1e-5)
    # The gradient's mean over the positions, times the output.
    torch.testing.assert_close(MAPS["Grad-CAM, all layers"](wf, x, zero), weight.mean() * x[:, 0])
    torch.testing.assert_close(MAPS["Grad-CAM, last block"](wf, x, zero), weight.mean() * x[:, 0])


def test_the_last_block_of_a_convolutional_network_is_the_one_before_the_pooling() -> None:
    captum()
    network = timm.create_model("resnet18", num_classes=5, in_chans=1)
    torch.manual_seed(0)
    x = torch.randn(2, 1, 64, 64)
    wf = with_memories(settle(network), x)
    assert list(block_outputs(wf, x.shape[1:]))[-1] == "layer4"
    seen = {}
    handle = wf.model.layer4.register_forward_hook(lambda _m, _a, output: seen.update(value=output))
    features = wf.model.layer4.register_forward_pre_hook(lambda _m, args: (args[0].requires_grad_(),))
    logit = wf(x, forget=-1)[torch.arange(2), CLASSES[:2]].sum()
    gradient = torch.autograd.grad(logit, seen["value"])[0]
    handle.remove(), features.remove()
    cam = (gradient.mean((2, 3), keepdim=True) * seen["value"]).sum(1).flatten(1).detach()
    found = MAPS["Grad-CAM, last block"](wf, x, CLASSES[:2])
    torch.testing.assert_close(found, onto_image(cam, (2, 2), (64, 64)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("pool", "block"), [("avg", "blocks"), ("token", "blocks.1")])
def test_behind_the_last_attention_patches_do_not_reach_a_class_token(pool: str, block: str) -> None:
    captum()
    wf = vit(global_pool=pool)
    x = torch.randn(2, 1, 32, 32)
    names = list(block_outputs(wf, x.shape[1:]))
    assert names[-1] == "blocks" and "blocks.1" in names
    tokens = {}
    modules = dict(wf.model.named_modules())

    def keep(_module: nn.Module, _args: tuple, output: Tensor) -> Tensor:
        tokens["value"] = output.requires_grad_()
        return output.clone()

    handle = modules[block].register_forward_hook(keep)
    logit = wf(x, forget=-1)[torch.arange(2), CLASSES[:2]].sum()
    handle.remove()
    gradient = torch.autograd.grad(logit, tokens["value"])[0]
    cam = (gradient[:, 1:].mean(1, keepdim=True) * tokens["value"][:, 1:]).sum(2).detach()
    found = MAPS["Grad-CAM, last block"](wf, x, CLASSES[:2])
    torch.testing.assert_close(found, onto_image(cam, (4, 4), (32, 32)), rtol=1e-3, atol=1e-6)


def test_windows_are_brought_back_into_the_image() -> None:
    """All layers' Grad-CAM of a network of windows, against one that is computed window by window."""
    captum()
    torch.manual_seed(0)
    network = timm.create_model(
        "swin_tiny_patch4_window7_224",
        num_classes=5,
        img_size=56,
        embed_dim=24,
        depths=(2,),
        num_heads=(2,),
        in_chans=1,
    )
    x = torch.randn(2, 1, 56, 56)
    wf = with_memories(settle(network), x)
    outputs = layer_outputs(wf, x.shape[1:])
    assert "layers.0.blocks.1.attn.qkv" in outputs
    found = MAPS["Grad-CAM, all layers"](wf, x, CLASSES[:2])
    assert found.shape == (2, 56, 56) and found.isfinite().all()
    torch.testing.assert_close(MAPS["Grad-CAM, all layers"](wf, x[:1], CLASSES[:1]), found[:1], rtol=1e-3, atol=1e-5)


def test_random_maps_are_drawn_by_seed_and_image() -> None:
    from memmod.explain.trivial_maps import random, smooth_random

    wf = small()
    for make in (random, smooth_random):
        one = make(wf, X, CLASSES)
        assert torch.equal(one, make(wf, X, CLASSES)) and not torch.equal(one, make(wf, X, CLASSES, seed=1))
        assert not torch.equal(one[0], one[1])
    smooth, rough = smooth_random(wf, X, CLASSES), random(wf, X, CLASSES)
    assert smooth.diff(dim=2).std() / smooth.std() < 0.7 * rough.diff(dim=2).std() / rough.std()


def test_without_captum_its_maps_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(RunError, match="pip install captum"):
        MAPS["occlusion"](small(), X, CLASSES)


def test_without_places_there_is_no_grad_cam() -> None:
    captum()
    network = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, 5))
    wf = with_memories(network, X)
    for name in ("Grad-CAM, last block", "Grad-CAM, all layers"):
        with pytest.raises(ModelError, match="layers with places"):
            MAPS[name](wf, X, CLASSES)
