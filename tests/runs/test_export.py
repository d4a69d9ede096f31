"""Baked weights in the base's own architecture: equal to the baked module, whatever was folded."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from memmod.errors import ModelError
from memmod.model import ModulateConfig, modulate
from memmod.runs.export import in_base_architecture, write_state
from memmod.surgery.random_weights import randomise
from memmod.zoo import create_model
from tests.helpers import assert_no_worse

SHAPE = (1, 16, 16)


def baked(base: nn.Module, x: torch.Tensor):
    """(modulated model with random memories, its bake of class 2 with a threshold)"""
    wf = modulate(base, example_input=x)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(2 * torch.randn(memory.shape, generator=generator))
    return wf, wf.bake(2, threshold=0.3)


@pytest.mark.parametrize("name", ["resnet", "vgg", "vit", "mobilenetv3_small_050"])
def test_state_loads_into_a_fresh_base(name, tmp_path):
    shape = (3, 64, 64) if name.startswith("mobilenet") else SHAPE
    base = randomise(create_model(name, 5, shape)).eval()
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    wf, module = baked(base, x)
    write_state(tmp_path / "b.safetensors", in_base_architecture(wf, {2}, base, x, 0.3), {"memmod": "baked"})
    fresh = create_model(name, 5, shape, seed=9)
    fresh.load_state_dict(load_file(tmp_path / "b.safetensors"))
    with torch.no_grad():
        plain, found = module(x), fresh.eval()(x)
        oracle = copy.deepcopy(module).double()(x.double())
    assert_no_worse({"logits": found}, {"logits": plain}, {"logits": oracle})
    assert (found - base(x)).abs().max() > 1e-2 * oracle.abs().max()


def test_closed_units_are_zero_in_the_file(tmp_path):
    base = randomise(create_model("resnet", 5, SHAPE)).eval()
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    wf, module = baked(base, x)
    state = in_base_architecture(wf, {2}, base, x, 0.3).state_dict()
    closed = wf.gates()["stem.0.memory"][2] < 0.3
    assert closed.any() and not closed.all()
    for name in ("stem.0.weight", "stem.1.weight", "stem.1.bias"):
        rows = state[name].flatten(1) if state[name].dim() > 1 else state[name][:, None]
        assert (rows[closed] == 0).all() and (rows[~closed] != 0).any(1).all()


def test_a_norm_keeps_its_statistics_and_holds_the_gates():
    base = randomise(create_model("resnet", 5, SHAPE)).eval()
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    wf, _ = baked(base, x)
    state, before = in_base_architecture(wf, {2}, base, x, 0.3).state_dict(), base.state_dict()
    s = wf.gates()["stem.0.memory"][2]
    s = torch.where(s < 0.3, 0.0, s)
    torch.testing.assert_close(state["stem.1.weight"], before["stem.1.weight"] * s, rtol=0, atol=0)
    torch.testing.assert_close(state["stem.1.bias"], before["stem.1.bias"] * s, rtol=0, atol=0)
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
        torch.testing.assert_close(in_base_architecture(wf, {2}, base, x)(x), expected, rtol=1e-3, atol=1e-4)


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
        in_base_architecture(wf, {2}, base, x, 0.3)


def test_tied_weights_are_written(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    write_state(tmp_path / "tied.safetensors", model, {})
    assert set(load_file(tmp_path / "tied.safetensors")) == {"0.weight", "1.weight"}
