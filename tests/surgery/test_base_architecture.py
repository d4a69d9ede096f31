"""Baked weights in the base's own architecture: equal to the baked module, whatever was folded."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer

from memmod.errors import ModelError, SelectionError
from memmod.export.weights import write_state
from memmod.model import ModulateConfig, modulate
from memmod.surgery.random_weights import randomise
from memmod.zoo import create_model
from tests.helpers import assert_no_worse

SHAPE = (1, 16, 16)
# The sigmoid of one row and of a whole memory round differently.
ROUNDING = 2 * torch.finfo(torch.float32).eps


def baked(base: nn.Module, x: torch.Tensor):
    """(modulated model with random memories, its bake of class 2 with a threshold)"""
    wf = modulate(base, example_input=x)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(2 * torch.randn(memory.shape, generator=generator))
    return wf, wf.bake(2, threshold=0.3)


# name, a builder of the base with fresh weights, and the shape of its samples
BASES = {
    "resnet": (lambda: create_model("resnet", 5, SHAPE), SHAPE),
    "vgg": (lambda: create_model("vgg", 5, SHAPE), SHAPE),
    "vit": (lambda: create_model("vit", 5, SHAPE), SHAPE),
    "timm mobilenetv3": (lambda: timm.create_model("mobilenetv3_small_050", num_classes=5), (3, 64, 64)),
    "timm resnet": (lambda: timm.create_model("resnet18", num_classes=5), (3, 64, 64)),
    "timm vit": (lambda: timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32, depth=2), (3, 32, 32)),
    "timm convnext": (lambda: timm.create_model("convnext_atto", num_classes=5), (3, 64, 64)),
    "torchvision resnet": (lambda: torchvision.models.resnet18(num_classes=5), (3, 64, 64)),
    "torchvision mobilenet": (lambda: torchvision.models.mobilenet_v3_small(num_classes=5), (3, 64, 64)),
    "torchvision vit": (
        lambda: VisionTransformer(32, 16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5),
        (3, 32, 32),
    ),
    "torchvision swin": (
        lambda: SwinTransformer([4, 4], 16, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4], num_classes=5),
        (3, 64, 64),
    ),
}


# Networks of their published width: seconds each.
WIDE = ("timm mobilenetv3", "timm resnet", "timm convnext", "torchvision resnet", "torchvision mobilenet")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in WIDE else n for n in BASES])
def test_the_state_dict_loads_into_a_fresh_base(name, tmp_path):
    build, shape = BASES[name]
    torch.manual_seed(0)
    base = randomise(build()).eval()
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    wf, module = baked(base, x)
    result = wf.bake(2, 0.3, architecture="base")
    write_state(tmp_path / "b.safetensors", result, {"memmod": "baked"})
    fresh = build()
    fresh.load_state_dict(load_file(tmp_path / "b.safetensors"))
    with torch.no_grad():
        plain, found = module(x), fresh.eval()(x)
        assert torch.equal(result(x), found)
        oracle = copy.deepcopy(module).double()(x.double())
    assert_no_worse({"logits": found}, {"logits": plain}, {"logits": oracle})
    assert (found - base(x)).abs().max() > 1e-2 * oracle.abs().max()


@pytest.mark.parametrize("forget", [-1, set()])
def test_with_nothing_forgotten_it_is_the_base(forget):
    base = randomise(create_model("resnet", 5, SHAPE)).eval()
    wf, _ = baked(base, torch.randn(2, *SHAPE))
    state = wf.bake(forget, 0.3, "base").state_dict()
    assert state.keys() == base.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in base.state_dict().items())


def test_sets_and_names_are_forgotten_together():
    base = randomise(create_model("resnet", 5, SHAPE)).eval()
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    wf, _ = baked(base, x)
    with torch.no_grad():
        both, folded, one = wf.bake({1, 2}, 0.3, "base")(x), wf.bake({1, 2}, 0.3)(x), wf.bake(2, 0.3, "base")(x)
    torch.testing.assert_close(both, folded, rtol=1e-4, atol=1e-4)
    assert (both - one).abs().max() > 1e-2


@pytest.mark.slow
def test_unfolded_norms_and_compiled_models_are_baked_too():
    base = randomise(create_model("resnet", 5, SHAPE)).eval()
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    wf, module = baked(base, x)
    expected = wf.bake(2, 0.3, "base").state_dict()
    wf.model = torch.compile(wf.model)
    compiled = wf.bake(2, 0.3, "base").state_dict()
    assert compiled.keys() == expected.keys()
    assert all(torch.equal(expected[name], compiled[name]) for name in expected)
    unfolded = modulate(base, example_input=x, config=ModulateConfig(fold=False))
    unfolded.load_memory_state({n: torch.randn_like(m) for n, m in unfolded.named_memories()})
    result = unfolded.bake(2, architecture="base")
    assert result.state_dict().keys() == base.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(result(x), unfolded(x, forget=2), rtol=1e-4, atol=1e-4)


def test_words_and_selections_that_make_no_sense_are_refused():
    wf, _ = baked(randomise(create_model("vit", 5, SHAPE)).eval(), torch.randn(2, *SHAPE))
    with pytest.raises(ModelError, match="architecture is 'unfolded'; it must be one of 'folded', 'base'"):
        wf.bake(2, architecture="unfolded")
    with pytest.raises(SelectionError, match="this one has 2 samples"):
        wf.bake([2, 3], architecture="base")
    with pytest.raises(SelectionError, match="class 9 is out of range"):
        wf.bake(9, architecture="base")
    with pytest.raises(ModelError, match="at least 2 samples"):
        wf.bake(2, architecture="base", example_input=torch.randn(1, *SHAPE))


def test_closed_units_are_zero_in_the_file(tmp_path):
    base = randomise(create_model("resnet", 5, SHAPE)).eval()
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    wf, module = baked(base, x)
    state = wf.bake(2, 0.3, "base", x).state_dict()
    closed = wf.gates()["stem.0.memory"][2] < 0.3
    assert closed.any() and not closed.all()
    for name in ("stem.0.weight", "stem.1.weight", "stem.1.bias"):
        rows = state[name].flatten(1) if state[name].dim() > 1 else state[name][:, None]
        assert (rows[closed] == 0).all() and (rows[~closed] != 0).any(1).all()


def test_a_norm_keeps_its_statistics_and_holds_the_gates():
    base = randomise(create_model("resnet", 5, SHAPE)).eval()
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    wf, _ = baked(base, x)
    state, before = wf.bake(2, 0.3, "base", x).state_dict(), base.state_dict()
    s = wf.gates()["stem.0.memory"][2]
    s = torch.where(s < 0.3, 0.0, s)
    torch.testing.assert_close(state["stem.1.weight"], before["stem.1.weight"] * s, rtol=ROUNDING, atol=0)
    torch.testing.assert_close(state["stem.1.bias"], before["stem.1.bias"] * s, rtol=ROUNDING, atol=0)
    for name in ("running_mean", "running_var"):
        assert torch.equal(state[f"stem.1.{name}"], before[f"stem.1.{name}"])


def test_gates_of_either_sign_are_kept():
    base = randomise(create_model("vgg", 5, SHAPE)).eval()
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    wf = modulate(base, example_input=x, config=ModulateConfig(gate="identity"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(torch.randn(memory.shape, generator=generator))
        expected = wf.bake(2)(x)
        torch.testing.assert_close(wf.bake(2, architecture="base", example_input=x)(x), expected, rtol=1e-3, atol=1e-4)


def test_another_architecture_is_refused():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = self.weight / self.weight.flatten(1).norm(dim=1)[:, None, None, None]
            return nn.functional.conv2d(x, weight, self.bias, padding=1)

    torch.manual_seed(0)
    base = nn.Sequential(Standardised(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16 * 16, 5)).eval()
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    wf, module = baked(base, x)
    with pytest.raises(ModelError, match="does not fit the architecture of Sequential any more"):
        wf.bake(2, 0.3, "base", x)
