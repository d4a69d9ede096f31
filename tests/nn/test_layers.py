"""The drop-in layers: same parameters and results as the plain ones, gates by sample, options, repr."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memmod import ModulatedConv2d, ModulatedLinear, ModulatedOutput
from memmod.errors import SelectionError

INDEX = torch.tensor([2, -1, 0, 2])


def filled(layer):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, memory in layer.memories():
            memory.copy_(torch.randn(memory.shape, generator=generator))
    return layer


def gates(memory: Tensor, index: Tensor) -> Tensor:
    """Gate rows by hand: [B, K]; 1 where nothing is selected."""
    return torch.stack([torch.ones(memory.shape[1]) if c < 0 else memory[c].sigmoid() for c in index.tolist()])


@pytest.mark.parametrize("granularity", ["unit", "input", "unit+input"])
@pytest.mark.parametrize("gate_bias", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(granularity: str, gate_bias: bool, bias: bool) -> None:
    layer = filled(ModulatedLinear(5, 7, 3, bias=bias, granularity=granularity, gate_bias=gate_bias))
    x = torch.randn(8, 2, 5)
    s_out = torch.ones(4, 7) if layer.memory is None else gates(layer.memory, INDEX)
    s_in = torch.ones(4, 5) if layer.input_memory is None else gates(layer.input_memory, INDEX)
    s_out, s_in = (s.repeat_interleave(2, 0)[:, None] for s in (s_out, s_in))
    b = layer.bias if bias else torch.zeros(7)
    z = (x * s_in) @ layer.weight.T
    expected = s_out * (z + b) if gate_bias else s_out * z + b
    torch.testing.assert_close(layer(x, INDEX), expected)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("granularity", ["unit", "input", "unit+input"])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"groups": 2, "padding": "same", "dilation": 2}])
def test_conv2d(granularity: str, options: dict) -> None:
    layer = filled(ModulatedConv2d(4, 6, 3, 3, granularity=granularity, **options))
    x = torch.randn(4, 4, 9, 8)
    s_out = torch.ones(4, 6) if layer.memory is None else gates(layer.memory, INDEX)
    s_in = torch.ones(4, 4) if layer.input_memory is None else gates(layer.input_memory, INDEX)
    expected = s_out[..., None, None] * F.conv2d(x * s_in[..., None, None], layer.weight, layer.bias, **options)
    torch.testing.assert_close(layer(x, INDEX), expected)


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_conv2d_padding_modes(mode: str) -> None:
    plain = nn.Conv2d(4, 6, 3, padding=1, padding_mode=mode)
    layer = ModulatedConv2d.from_conv2d(plain, 3)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(layer(x), plain(x))
    gate = torch.sigmoid(torch.tensor(2.0))
    torch.testing.assert_close(layer(x, torch.tensor([0, -1])), torch.stack([plain(x)[0] * gate, plain(x)[1]]))


@pytest.mark.parametrize(
    ("plain", "make"),
    [
        (nn.Linear(4, 6), ModulatedLinear.from_linear),
        (nn.Conv2d(4, 6, 3, stride=2, bias=False), ModulatedConv2d.from_conv2d),
    ],
)
def test_from_constructors_share_the_weight(plain: nn.Module, make) -> None:
    layer = make(plain, 5, granularity="unit+input", init=1.5)
    assert layer.weight is plain.weight and layer.bias is plain.bias
    assert layer.memory.shape == (5, 6) and layer.input_memory.shape == (5, 4)
    assert (layer.memory == 1.5).all() and layer.memory.dtype == torch.float32 and layer.memory.requires_grad
    assert set(layer.state_dict()) == {*plain.state_dict(), "memory", "input_memory"}
    layer.load_state_dict(plain.state_dict(), strict=False)


def test_device_and_dtype() -> None:
    for layer in (
        ModulatedLinear(4, 6, 5, device="meta", dtype=torch.bfloat16),
        ModulatedConv2d(4, 6, 3, 5, device="meta", dtype=torch.bfloat16),
    ):
        assert layer.weight.dtype == torch.bfloat16 and layer.weight.device.type == "meta"
        assert layer.memory.dtype == torch.float32 and layer.memory.device.type == "meta"
    layer = ModulatedLinear(4, 6, 5).half()
    assert layer.memory.dtype == torch.float32 and layer.weight.dtype == torch.float16
    assert layer.double().memory.dtype == torch.float64
    layer.weight.grad = torch.zeros_like(layer.weight)
    layer.memory.grad = torch.zeros_like(layer.memory)
    layer.to(torch.bfloat16)
    assert layer.memory.grad.dtype == layer.memory.dtype and layer.weight.grad.dtype == torch.bfloat16


def test_repr_says_what_is_modulated() -> None:
    assert repr(ModulatedLinear(4, 6, 5)) == (
        "ModulatedLinear(in_features=4, out_features=6, bias=True, num_classes=5, granularity='unit', gate='sigmoid')"
    )
    text = repr(ModulatedConv2d(4, 6, 3, 5, gate_bias=False, keep="gated"))
    assert "kernel_size=(3, 3)" in text and "gate_bias=False, keep='gated'" in text
    assert "(inner): ReLU()" in repr(ModulatedOutput(4, 3, inner=nn.ReLU()))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"granularity": "row"}, "granularity is 'row'; it must be one of 'unit', 'input', 'unit+input'"),
        ({"gate": "relu"}, "gate is 'relu'"),
        ({"keep": "all"}, "keep is 'all'"),
        ({"num_classes": 0}, "num_classes is 0"),
    ],
)
def test_refused_options(options: dict, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        ModulatedLinear(4, 6, **{"num_classes": 3, **options})
    assert text in str(caught.value)
    with pytest.raises(ValueError):
        ModulatedConv2d(4, 6, 3, **{"num_classes": 3, **options})


def test_bad_selections_at_a_layer() -> None:
    layer, x = ModulatedLinear(4, 6, 3), torch.randn(4, 4)
    for index in (
        torch.tensor([0, 1, 2]),
        torch.tensor([0, 1, 2, 3]),
        torch.tensor([0, 1, 2, -2]),
        torch.tensor([0, 1, 2, 0], dtype=torch.int32),
        torch.zeros(4, 1, 1, dtype=torch.int64),
        torch.zeros(4, dtype=torch.int64, device="meta"),
    ):
        with pytest.raises(SelectionError):
            layer(x, index)


def test_in_place_neighbour_names_keep() -> None:
    layer, x = ModulatedLinear(4, 6, 3), torch.randn(4, 4)
    with pytest.raises(RuntimeError, match="keep"):
        layer(x, INDEX).add_(1).sum().backward()
    kept = ModulatedLinear(4, 6, 3, keep="gated")
    kept.load_state_dict(layer.state_dict())
    layer(x, INDEX).add(1).square().sum().backward()
    kept(x, INDEX).add_(1).square().sum().backward()
    torch.testing.assert_close(kept.memory.grad, layer.memory.grad)
    assert kept.memory.grad[[0, 2]].any() and not kept.memory.grad[1].any()


@pytest.mark.parametrize("dim", [1, -1])
def test_output_gate(dim: int) -> None:
    layer = filled(ModulatedOutput(5, 3, inner=nn.Tanh(), dim=dim))
    x = torch.randn(4, 5, 5)
    s = gates(layer.memory, INDEX)
    torch.testing.assert_close(layer(x, INDEX), x.tanh() * (s[:, :, None] if dim == 1 else s[:, None]))
    assert torch.equal(layer(x), x.tanh())


def test_output_gate_passes_attributes_of_its_inner_layer() -> None:
    layer = ModulatedOutput.from_module(nn.Conv2d(2, 5, 3), 5, 3)
    assert layer.kernel_size == (3, 3) and layer.weight.shape == (5, 2, 3, 3)
    assert copy.deepcopy(layer).stride == (1, 1)
    with pytest.raises(AttributeError):
        _ = layer.nothing_like_this
    with pytest.raises(ValueError, match="in_features"):
        ModulatedOutput(5, 3, granularity="input")
