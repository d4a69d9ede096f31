"""modulate() on the models people use: gates act, nothing forgotten changes nothing, bake equals the gated forward."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn

from memmod import modulate
from memmod.nn.modulated import Modulated
from memmod.surgery.random_weights import randomise
from tests.helpers import assert_no_worse

# name, how to build it, side of the images, layers gated, layers left with a reason that holds this text
timm_model = partial(timm.create_model, num_classes=10)
tv_model = torchvision.models
CASES = {
    "timm resnet18": (lambda: timm_model("resnet18"), 64, 20, {}),
    "timm resnet50": (lambda: timm_model("resnet50"), 64, 53, {}),
    "timm vgg16_bn": (lambda: timm_model("vgg16_bn"), 64, 15, {}),
    "timm vit_tiny": (lambda: timm_model("vit_tiny_patch16_224", img_size=96), 96, 49, {}),
    "timm swin_tiny": (lambda: timm_model("swin_tiny_patch4_window7_224"), 224, 52, {}),
    "timm swinv2_tiny": (
        lambda: timm_model("swinv2_tiny_window8_256"),
        256,
        52,
        {"not samples": 24},
    ),
    "timm beit_base": (lambda: timm_model("beit_base_patch16_224", img_size=64), 64, 49, {}),
    "timm convnext_tiny": (lambda: timm_model("convnext_tiny"), 64, 58, {}),
    "timm mobilenetv3_small": (lambda: timm_model("mobilenetv3_small_100"), 64, 35, {"squeeze-excite": 18}),
    "timm efficientnet_lite0": (lambda: timm_model("efficientnet_lite0"), 64, 49, {}),
    "timm densenet121": (lambda: timm_model("densenet121"), 64, 120, {}),
    "timm resnetv2_50": (lambda: timm_model("resnetv2_50"), 64, 53, {}),
    "torchvision squeezenet1_1": (lambda: tv_model.squeezenet1_1(num_classes=10), 64, 25, {}),
    "torchvision resnet18": (lambda: tv_model.resnet18(num_classes=10), 64, 20, {}),
    "torchvision vgg16": (lambda: tv_model.vgg16(num_classes=10), 64, 15, {}),
    "torchvision vit_b_16": (lambda: tv_model.vit_b_16(num_classes=10, image_size=64), 64, 49, {}),
    "torchvision swin_t": (lambda: tv_model.swin_t(num_classes=10), 96, 52, {}),
}


# `make check` runs the first two, `make test` one of each kind of block, `make test-all` every one.
SMALL = (
    "torchvision squeezenet1_1",
    "timm mobilenetv3_small",
    "torchvision resnet18",
    "timm resnet18",
    "timm vit_tiny",
    "timm efficientnet_lite0",
)


def _marked(name: str) -> object:
    if name in SMALL[:2]:
        return name
    return pytest.param(name, marks=pytest.mark.slow if name in SMALL else pytest.mark.exhaustive)


@pytest.mark.parametrize("name", [_marked(name) for name in CASES])
def test_architecture(name: str) -> None:
    build, side, layers, left = CASES[name]
    torch.manual_seed(0)
    base = randomise(build()).eval()
    x = torch.randn(3, 3, side, side)
    state = {key: value.clone() for key, value in base.state_dict().items()}
    wf = modulate(base, example_input=x[:2])

    reasons = [row.reason for row in wf.summary().rows if row.action == "skipped" and row.kind != "Parameter"]
    for text, count in left.items():
        assert sum(text in reason for reason in reasons) == count, wf.summary()
    assert reasons.count("the classifier head") == 1
    assert len(reasons) == 1 + sum(left.values()), wf.summary()
    gated = [m for m in wf.model.modules() if isinstance(m, Modulated)]
    assert len(gated) == layers, wf.summary()
    assert all(torch.equal(value, state[key]) for key, value in base.state_dict().items())

    wf.verify(x[:2])
    _check_logits(wf, base, x)
    _check_training_step(wf, x)


def _check_logits(wf, base, x) -> None:
    """Nothing forgotten gives the base's logits; bake gives the gated ones; both within the bound of fp64."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(torch.randn(memory.shape, generator=generator) + 2)
        exact_base, exact_x = _double(base), x.double()
        exact_wf = modulate(exact_base, example_input=exact_x[:2]).double()
        exact_wf.load_memory_state(wf.memory_state())
        baked, exact_baked = wf.bake(1), exact_wf.bake(1)
        assert not any(type(m).__module__.startswith("memmod") for m in baked.modules())
        assert not any("memory" in key for key in baked.state_dict())
        oracle = {"nothing": exact_base(exact_x), "forget 1": exact_wf(exact_x, forget=1)}
        plain = {"nothing": base(x), "forget 1": wf(x, forget=torch.full((len(x),), 1))}
        assert_no_worse(
            {"nothing": wf(x, forget=-1), "forget 1": baked(x)},
            plain,
            oracle,
        )
        torch.testing.assert_close(exact_baked(exact_x), oracle["forget 1"], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(exact_wf(exact_x, forget=-1), oracle["nothing"], rtol=1e-9, atol=1e-9)
        difference = (oracle["forget 1"] - oracle["nothing"]).abs().max()
        assert difference > 1e-3 * oracle["nothing"].abs().max(), "gates must change the logits"


def _double(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).double()


def _check_training_step(wf, x) -> None:
    wf.train()
    forget = torch.tensor([0, 3, -1])
    loss = wf(x, forget=forget).square().mean()
    loss.backward()
    for name, memory in wf.named_memories():
        assert memory.grad is not None and torch.isfinite(memory.grad).all(), name
        assert memory.grad[[0, 3]].any(dim=1).all(), f"{name}: a selected class has no gradient"
        assert not memory.grad[[1, 2, 4]].any(), f"{name}: an unselected class has a gradient"
    assert all(p.grad is None for n, p in wf.model.named_parameters() if "memory" not in n.rsplit(".", 1)[-1])
