"""Turns a modulated model back into an ordinary one, with or without a selection's gates in its weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from memmod.errors import ModelError
from memmod.nn import ModulatedConv2d, ModulatedMultiheadAttention, ModulatedOutput
from memmod.nn.modulated import Modulated
from memmod.ops.gating import gates as gates_of_selection
from memmod.surgery.base_copy import detached_copy, without_compilation
from memmod.surgery.modify import Changes
from memmod.surgery.own_linear import weight_and_bias
from memmod.surgery.qkv_bias import part_biases
from memmod.surgery.relu import unfuse_activations
from memmod.surgery.replace import plain_conv2d, plain_linear, replace_module

# A copy with scaled weights stands for the gated layer only if it agrees with it to rounding.
AGREEMENT = 1e-4


@torch.inference_mode(False)
def bake(model: nn.Module, changes: Changes, index: Tensor | None, threshold: float | None) -> nn.Module:
    """A new ordinary module equal to a modulated one under one selection (index ``[1]`` or ``[1, S]``; None: nothing).

    Gates below `threshold` become exactly 0.
    """
    model = without_compilation(detached_copy(model))
    for layer in list(model.modules()):
        if isinstance(layer, Modulated):
            gates = [
                selected_gates(memory, index, layer.gate, threshold) for memory in (layer.memory, layer.input_memory)
            ]
            replace_module(model, layer, _baked(layer, *gates))
    unfuse_activations(model)
    return _close_attention(model, changes)


def selected_gates(memory: Tensor | None, index: Tensor | None, gate: str, threshold: float | None) -> Tensor | None:
    if memory is None or index is None:
        return None
    gates = gates_of_selection(memory.detach(), index, gate)[0]
    return gates if threshold is None else torch.where(gates < threshold, 0.0, gates)


def _baked(layer: Modulated, s_out: Tensor | None, s_in: Tensor | None) -> nn.Module:
    if isinstance(layer, ModulatedOutput):
        return _baked_output(layer, s_out, s_in)
    weight, bias = _ordinary(layer.weight.detach()), None if layer.bias is None else layer.bias.detach()
    trailing = (1,) * (weight.dim() - 2)
    new = weight.to(torch.float64)
    if s_in is not None:
        if isinstance(layer, ModulatedConv2d) and layer.groups > 1:
            # Group g's units read the inputs of group g only.
            per_group = s_in.view(layer.groups, 1, -1).expand(-1, layer.out_channels // layer.groups, -1)
            new = new * per_group.reshape(layer.out_channels, -1, *trailing)
        else:
            new = new * s_in.view(1, -1, *trailing)
    if s_out is not None:
        new = new * s_out.view(-1, 1, *trailing)
        if bias is not None and layer.gate_bias:
            bias = (bias.double() * s_out).to(bias.dtype)
    make = plain_conv2d if isinstance(layer, ModulatedConv2d) else plain_linear
    return make(layer, new.to(weight.dtype), bias)


def _baked_output(layer: ModulatedOutput, s_out: Tensor | None, s_in: Tensor | None) -> nn.Module:
    inner = layer.inner if layer.inner is not None else nn.Identity()
    if s_in is not None:
        inner = nn.Sequential(_channel_scale(s_in, layer.dim, layer), inner)
    if s_out is None:
        return inner
    x = _probe_input(layer)
    if x is not None:
        with torch.no_grad():
            expected = _scaled(inner(x), s_out, layer.dim)
            for candidate in _with_gates_inside(inner, s_out, x):
                if _agree(candidate(x), expected):
                    return candidate
    return nn.Sequential(inner, _channel_scale(s_out, layer.dim, layer))


def _probe_input(layer: ModulatedOutput) -> Tensor | None:
    shape = getattr(layer, "example_shape", None)
    like = next(layer.inner.parameters(), None) if layer.inner is not None else None
    if shape is None or like is None:
        return None
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)


def _scaled(y: Tensor, gates: Tensor, dim: int) -> Tensor:
    shape = [1] * y.dim()
    shape[dim] = -1
    return y * gates.view(shape).to(y.dtype)


def _agree(actual: Tensor, expected: Tensor) -> bool:
    return actual.shape == expected.shape and bool(
        (actual - expected).abs().max() <= AGREEMENT * expected.abs().max().clamp_min(1e-30)
    )


def _with_gates_inside(inner: nn.Module, gates: Tensor, x: Tensor) -> Iterator[nn.Module]:
    """Ordinary layers that may be the gated one: what `inner` computes on `x` tells which is."""
    weight, _ = weight_and_bias(inner)
    for dim in (0, -1) if type(weight) is nn.Parameter else ():
        if weight.shape[dim] == gates.numel():
            yield _scaled_copy(inner, gates, dim)
    effective = _effective_layer(inner, gates, x)
    if effective is not None:
        yield effective


def _scaled_copy(inner: nn.Module, gates: Tensor, dim: int) -> nn.Module:
    """The layer with its units' weights and biases scaled: right for norms, and for convs that pad their own way.

    Args:
        dim: of the weight, along which the units lie.
    """
    scaled = detached_copy(inner)
    weight, bias = weight_and_bias(scaled)
    shape = [1] * weight.dim()
    shape[dim] = -1
    weight.data.mul_(gates.view(shape).to(weight.dtype))
    if bias is not None and bias.shape == gates.shape:
        bias.data.mul_(gates.to(bias.dtype))
    return scaled


class _FirstLayerCall(TorchFunctionMode):
    """Catches the weight and the bias that a layer hands to the library."""

    def __init__(self) -> None:
        super().__init__()
        self.found: tuple | None = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.conv2d, F.linear) and self.found is None:
            names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
            self.found = (func, dict(zip(names, args, strict=False)) | kwargs)
        return func(*args, **kwargs)


def _effective_layer(inner: nn.Module, gates: Tensor, x: Tensor) -> nn.Module | None:
    """An ordinary layer with the weight that `inner` computes for itself (a standardised weight, say), scaled."""
    with _FirstLayerCall() as watch:
        inner(x)
    if watch.found is None or not isinstance(inner, (nn.Linear, nn.Conv2d)):
        return None
    func, call = watch.found
    weight, bias = _ordinary(call["weight"].detach()), call.get("bias")
    new = (weight.double() * gates.view(-1, *(1,) * (weight.dim() - 1))).to(weight.dtype)
    bias = None if bias is None else (bias.detach().double() * gates).to(bias.dtype)
    if func is F.linear:
        return plain_linear(inner, new, bias)
    return plain_conv2d(inner, new, bias) if inner.padding_mode == "zeros" else None


def _ordinary(weight: Tensor) -> Tensor:
    """The values of a quantised weight; other weights are their own."""
    return weight.dequantize() if type(weight) not in (Tensor, nn.Parameter) else weight


def _channel_scale(gates: Tensor, dim: int, layer: ModulatedOutput) -> nn.Module:
    """An ordinary layer that multiplies each channel: a depthwise 1×1 convolution, or a diagonal linear layer."""
    count = gates.numel()
    like = next(layer.inner.parameters(), layer.memory if layer.memory is not None else layer.input_memory)
    gates = gates.to(like.device, like.dtype)
    if dim == 1:
        conv = nn.Conv2d(count, count, 1, groups=count, bias=False, device="meta")
        conv.weight = nn.Parameter(gates.view(-1, 1, 1, 1).clone(), requires_grad=False)
        return conv
    if dim == -1:
        linear = nn.Linear(count, count, bias=False, device="meta")
        linear.weight = nn.Parameter(torch.diag(gates), requires_grad=False)
        return linear
    raise ModelError(f"a gate along dimension {dim} of a layer's output has no ordinary layer to bake into")


@torch.inference_mode(False)
def unload(model: nn.Module, changes: Changes) -> nn.Module:
    """The base again, unfolded, as an ordinary module with weights of its own."""
    memo: dict = {}
    model = without_compilation(detached_copy(model, memo))
    for name, original in reversed(changes.originals):
        replace_module(model, model.get_submodule(name), detached_copy(original, memo))
    return _restore(model, changes)


def _close_attention(model: nn.Module, changes: Changes) -> nn.Module:
    """Turn replaced attention back into the library's own, around its now ordinary projections."""
    for layer in list(model.modules()):
        if isinstance(layer, ModulatedMultiheadAttention):
            replace_module(model, layer, layer.to_multihead_attention(layer.in_proj, layer.out_proj))
        elif hasattr(layer, "to_window_attention"):
            replace_module(model, layer, layer.to_window_attention(layer.qkv, layer.proj))
    part_biases(model, changes.originals)
    return _restore(model, changes)


def _restore(model: nn.Module, changes: Changes) -> nn.Module:
    """Give back the attributes and the trainable parameters that modulate() changed."""
    modules = dict(model.named_modules())
    for name, attribute, value in changes.attributes:
        if hasattr(modules.get(name), attribute):
            setattr(modules[name], attribute, value)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(changes.trainable.get(name, parameter.is_floating_point()))
    return model
