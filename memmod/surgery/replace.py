"""Ordinary layers with given weights, and putting a module in another's place."""

from __future__ import annotations

from torch import Tensor, nn


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` in the place of `old` wherever `model` refers to it, but not inside `new`."""
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is old and parent is not new:
                parent._modules[key] = new


def plain_linear(layer: nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """An ordinary `nn.Linear` of the layer's shape with these weights."""
    linear = nn.Linear(layer.in_features, layer.out_features, bias=bias is not None, device="meta")
    linear.weight = _parameter(weight)
    linear.bias = None if bias is None else _parameter(bias)
    return linear.train(layer.training)


def plain_conv2d(layer: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """An ordinary `nn.Conv2d` of the layer's shape with these weights."""
    conv = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=bias is not None,
        padding_mode=layer.padding_mode,
        device="meta",
    )
    conv.weight = _parameter(weight)
    conv.bias = None if bias is None else _parameter(bias)
    return conv.train(layer.training)


def _parameter(value: Tensor) -> nn.Parameter:
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
