"""Packed weights: made once, never stale, freed with the weight."""

from __future__ import annotations

import copy
import gc
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from memmod import ModulatedConv2d, ModulatedLinear
from memmod.ops import dispatch
from memmod.ops.backends.cpu import extension

pytestmark = pytest.mark.skipif(
    dispatch.availability()["cpu"] is not None, reason=f"cpu: {dispatch.availability()['cpu']}"
)
INDEX = torch.tensor([0, -1, 2])


def linear() -> tuple[ModulatedLinear, torch.Tensor]:
    torch.manual_seed(0)
    return ModulatedLinear(129, 65, 4), torch.randn(3, 40, 129)


def conv() -> tuple[ModulatedConv2d, torch.Tensor]:
    torch.manual_seed(0)
    layer = ModulatedConv2d(16, 33, 3, 4, padding=1).to(memory_format=torch.channels_last)
    return layer, torch.randn(3, 16, 17, 19).to(memory_format=torch.channels_last)


def results(layer, x):
    x = x.detach().requires_grad_()
    y = layer(x, INDEX)
    return y.detach(), torch.autograd.grad(y.square().sum(), x)[0]


def plain(layer, x):
    """The same by PyTorch's own layers."""
    x = x.detach().requires_grad_()
    y = F.linear(x, layer.weight, layer.bias) if x.dim() == 3 else F.conv2d(x, layer.weight, layer.bias, padding=1)
    gates = torch.sigmoid(layer.memory)[INDEX].where((INDEX >= 0)[:, None], 1)
    y = y * (gates[:, None] if x.dim() == 3 else gates[:, :, None, None])
    return y.detach(), torch.autograd.grad(y.square().sum(), x)[0]


def in_panels(columns):
    """Columns with those that fill up the last panel, where panels are widest."""
    return -(-columns // 128) * 128


def new_values(layer):
    return {key: torch.randn_like(value) for key, value in layer.state_dict().items()}


CHANGES = {
    "in place": lambda layer: layer.weight.detach().mul_(-2),
    "one element": lambda layer: layer.weight.detach()[7, 3].add_(1000),
    "data": lambda layer: layer.weight.data.mul_(-2),
    "another storage": lambda layer: setattr(layer.weight, "data", torch.randn_like(layer.weight)),
    "state dict": lambda layer: layer.load_state_dict(new_values(layer)),
    "assigned state dict": lambda layer: layer.load_state_dict(new_values(layer), assign=True),
    "another parameter": lambda layer: setattr(layer, "weight", nn.Parameter(torch.randn_like(layer.weight))),
    "an optimiser": lambda layer: torch.optim.SGD([layer.weight], lr=1).step(),
    "its numpy array": lambda layer: layer.weight.detach().numpy().__imul__(-2),
}


@pytest.mark.parametrize("make", [linear, conv])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_weight_is_packed_anew(make, change):
    layer, x = make()
    before = results(layer, x)
    layer.weight.grad = torch.randn_like(layer.weight)
    change(layer)
    after = results(layer, x)
    for was, now, expected in zip(before, after, plain(layer, x), strict=True):
        torch.testing.assert_close(now, expected, rtol=1e-4, atol=1e-3 * expected.abs().max().item())
        assert not torch.allclose(was, now)


@pytest.mark.parametrize("make", [linear, conv])
def test_freed_with_the_layer(make):
    gc.collect()
    before = extension.packed_bytes()
    layer, x = make()
    layer.requires_grad_(False)
    layer.memory.requires_grad_()
    results(layer, x)
    held = extension.packed_bytes() - before
    units, inputs, *taps = layer.weight.shape
    panels = in_panels(units) * inputs + in_panels(inputs) * units
    assert 2 * 4 * layer.weight.numel() <= held <= 6 * panels * math.prod(taps)
    results(layer, x)
    assert extension.packed_bytes() - before == held
    del layer
    gc.collect()
    assert extension.packed_bytes() == before


def test_a_copy_has_its_own():
    layer, x = linear()
    results(layer, x)
    twin = copy.deepcopy(layer)
    twin.weight.data.neg_()
    for got, expected in zip(results(twin, x), plain(twin, x), strict=True):
        torch.testing.assert_close(got, expected)
    for got, expected in zip(results(layer, x), plain(layer, x), strict=True):
        torch.testing.assert_close(got, expected)


def test_an_address_that_is_used_again_has_no_memory():
    x = torch.randn(3, 40, 129)
    for seed in range(50):
        torch.manual_seed(seed)
        layer = ModulatedLinear(129, 65, 4)
        torch.testing.assert_close(layer(x, INDEX)[1], F.linear(x[1], layer.weight, layer.bias))


def test_only_the_forward_is_packed_for_serving():
    layer, x = linear()
    layer.requires_grad_(False)
    before = extension.packed_bytes()
    layer(x, INDEX)
    held = extension.packed_bytes() - before
    assert held >= 4 * layer.weight.numel()
    layer(x, INDEX)
    assert extension.packed_bytes() - before == held
    results(layer, x)
    assert extension.packed_bytes() - before >= held + 4 * layer.weight.numel()
