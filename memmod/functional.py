"""Modulated layers as functions: what the modules call.

A selection's shape, dtype and device are checked here, the range of its classes inside the ops. Autocast casts x,
weight and bias as it does for the plain layers, never a memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

import memmod.ops  # noqa: F401  (defines torch.ops.memmod)
from memmod.errors import SelectionError
from memmod.ops import dispatch, transforms
from memmod.ops import modulate_output as output_op
from memmod.ops import modulated_conv2d as conv_op
from memmod.ops import modulated_linear as linear_op
from memmod.ops.autocast import cast
from memmod.ops.autograd import output_is_enough
from memmod.ops.calls import ConvCall, LinearCall, OutputCall
from memmod.ops.modes import transformed
from memmod.ops.zero_gradient import wanted, with_zero_gradient

GATES = ("sigmoid", "identity", "hard")
KEEPS = ("output", "gated")
ACTIVATIONS = (None, "relu")


def modulated_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    memory: Tensor | None = None,
    index: Tensor | None = None,
    *,
    input_memory: Tensor | None = None,
    gate: str = "sigmoid",
    gate_bias: bool = True,
    keep: str = "output",
    activation: str | None = None,
) -> Tensor:
    """y = s_out ⊙ ((s_in ⊙ x) Wᵀ + b), each sample with the gates of the classes it selects (arXiv 2304.02049).

    Shapes:
        x ``[k·B, …, I]`` (row r belongs to sample r // k), weight ``[O, I]``, bias ``[O]``, memory ``[C, O]``,
        input_memory ``[C, I]``, index int64 ``[B]`` or ``[B, S]`` → ``[k·B, …, O]``, contiguous.

    Args:
        index: the classes each sample forgets, -1 for nothing; several in a row multiply their gates. None: nothing is
            forgotten by any sample, the plain layer; memories that are trained get a gradient of zero.
        gate: "sigmoid" (s = σ(α)), "identity" (s = α) or "hard" (s = α > 0, no gradient for the memory).
        gate_bias: False leaves b outside of the gate.
        keep: "gated" keeps the gated product for the backward instead of y, for a y that is changed in place.
        activation: "relu" puts a ReLU behind the bias. In eager calls it is part of the kernel that gates, on a GPU and
            on the CPU, and the backward keeps its output alone: where that is 0 no gradient passes, elsewhere it is
            the gated product.

    Raises:
        SelectionError: an index of a wrong dtype, shape, device or range, rows that are not a multiple of B, a memory
            of a wrong width or dtype, an unknown gate, keep or activation.
    """
    _check_options(gate, keep, activation)
    if index is None or (memory is None and input_memory is None):
        return _activated(_owing(F.linear(x, weight, bias), memory, input_memory), activation)
    if _knows_its_functions(weight):
        gates = (memory, input_memory, index, gate, gate_bias, keep)
        return _activated(_gated_around(lambda x, bias: F.linear(x, weight, bias), x, bias, -1, *gates), activation)
    x, weight, bias = cast(x, weight, bias)
    tensors = (x, weight, bias, memory, input_memory, index)
    y = dispatch.eager("modulated_linear", tensors, gate, gate_bias, keep == "gated", activation == "relu")
    if y is not None:
        return y
    if x.dim() < 2:
        raise SelectionError(f"x has shape {tuple(x.shape)}; with a selection it must be [rows, ..., features]")
    _check(x, memory, input_memory, index, weight.shape[0], weight.shape[1])
    if transformed():
        call = LinearCall(x, weight, bias, memory, input_memory, index, gate, gate_bias, keep_gated=False)
        return _activated(transforms.modulated_linear(call), activation)
    keep_gated = _keeps(memory, gate, gate_bias, bias, keep)
    y = linear_op.apply(x, weight, bias, memory, input_memory, _usable(index), gate, gate_bias, keep_gated)
    return _activated(y, activation)


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    memory: Tensor | None = None,
    index: Tensor | None = None,
    *,
    input_memory: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    gate: str = "sigmoid",
    gate_bias: bool = True,
    keep: str = "output",
    activation: str | None = None,
) -> Tensor:
    """As `modulated_linear`, with a convolution (arXiv 2304.02049).

    `stride`, `padding`, `dilation` and `groups` are as in `torch.nn.functional.conv2d`; `gate`, `gate_bias`, `keep` and
    `activation` as in `modulated_linear`.

    Shapes:
        x ``[k·B, I, H, W]`` (row r belongs to sample r // k), weight ``[O, I / groups, kH, kW]``, bias ``[O]``, memory
        ``[C, O]``, input_memory ``[C, I]``, index int64 ``[B]`` or ``[B, S]`` → ``[k·B, O, H', W']``, channels_last
        if x or weight is.

    Raises:
        SelectionError: as `modulated_linear`.
        ValueError: padding="same" with a stride, or another text than "same" and "valid".
    """
    _check_options(gate, keep, activation)
    if index is None or (memory is None and input_memory is None):
        y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        return _activated(_owing(y, memory, input_memory), activation)
    if _knows_its_functions(weight):
        gates = (memory, input_memory, index, gate, gate_bias, keep)
        options = (stride, padding, dilation, groups)
        return _activated(
            _gated_around(lambda x, bias: F.conv2d(x, weight, bias, *options), x, bias, 1, *gates), activation
        )
    x, weight, bias = cast(x, weight, bias)
    stride, dilation = _pair(stride), _pair(dilation)
    if not isinstance(padding, str):
        options = (stride, _pair(padding), dilation, groups)
        tensors = (x, weight, bias, memory, input_memory, index)
        y = dispatch.eager(
            "modulated_conv2d", tensors, gate, gate_bias, keep == "gated", activation == "relu", *options
        )
        if y is not None:
            return y
    if x.dim() != 4:
        raise SelectionError(
            f"x has shape {tuple(x.shape)}; with a selection it must be [rows, channels, height, width]"
        )
    _check(x, memory, input_memory, index, weight.shape[0], weight.shape[1] * groups)
    if isinstance(padding, str):
        x, padding = _named_padding(x, weight, padding, stride, dilation)
        options = (stride, padding, dilation, groups)
    if transformed():
        call = ConvCall(x, weight, bias, memory, input_memory, index, gate, gate_bias, False, *options)
        return _activated(transforms.modulated_conv2d(call), activation)
    keep_gated = _keeps(memory, gate, gate_bias, bias, keep)
    y = conv_op.apply(x, weight, bias, memory, input_memory, _usable(index), gate, gate_bias, keep_gated, *options)
    return _activated(y, activation)


def _knows_its_functions(weight: Tensor) -> bool:
    """Whether it is a tensor of tensors, as torchao's quantised weights are, which only its own functions read."""
    return type(weight) not in (Tensor, nn.Parameter) and is_traceable_wrapper_subclass(weight)


def _gated_around(
    apply: Callable[[Tensor, Tensor | None], Tensor],
    x: Tensor,
    bias: Tensor | None,
    dim: int,
    memory: Tensor | None,
    input_memory: Tensor | None,
    index: Tensor,
    gate: str,
    gate_bias: bool,
    keep: str,
) -> Tensor:
    """A modulated layer with its gates outside of ``apply(x, bias)``; `dim` is that of its units and inputs."""
    if input_memory is not None:
        x = modulate_output(x, input_memory, index, dim=dim, gate=gate, keep="gated")
    if memory is None:
        return apply(x, bias)
    inside = bias if gate_bias else None
    y = modulate_output(apply(x, inside), memory, index, dim=dim, gate=gate, keep=keep)
    if bias is None or gate_bias:
        return y
    return y + (bias if dim == -1 else bias.view(-1, 1, 1))


def modulate_output(
    x: Tensor, memory: Tensor, index: Tensor | None, *, dim: int = 1, gate: str = "sigmoid", keep: str = "output"
) -> Tensor:
    """y = s ⊙ x along `dim`: gates behind any layer, in x's own dtype (autocast changes nothing).

    `gate` and `keep` are as in `modulated_linear`.

    Shapes:
        x ``[k·B, …]`` with the memory's width K at `dim` (not 0), memory ``[C, K]``, index int64 ``[B]`` or ``[B, S]``
        → like x.

    Raises:
        SelectionError: as `modulated_linear`, or a `dim` that x does not have.
    """
    _check_options(gate, keep)
    if index is None:
        return _owing(x, memory)
    y = dispatch.eager("modulate_output", (x, memory, index), dim, gate, keep == "gated")
    if y is not None:
        return y
    dims = x.dim()
    if not -dims < dim < dims or dim == 0:
        raise SelectionError(
            f"dim is {dim}, but the channels of x {tuple(x.shape)} are at one of its dims after the first"
        )
    _check(x, memory, None, index, x.shape[dim], None)
    if transformed():
        return transforms.modulate_output(OutputCall(x, memory, index, dim, gate, keep_gated=False))
    return output_op.apply(
        x, memory, _usable(index), dim, gate, keep == "gated" and gate != "identity" and _learns(memory)
    )


def _owing(y: Tensor, *memories: Tensor | None) -> Tensor:
    """A call's output, whose backward gives memories that the call does not use a gradient of zero.

    Of its input, the layer's backward would compute a gradient that nobody asks for.
    """
    owed = wanted(memories)
    return with_zero_gradient((y,), owed)[0] if owed and y.is_floating_point() else y


def _activated(y: Tensor, activation: str | None) -> Tensor:
    return y if activation is None else F.relu(y)


def _check_options(gate: str, keep: str, activation: str | None = None) -> None:
    if gate not in GATES:
        raise SelectionError(f"gate is {gate!r}; it must be one of {', '.join(map(repr, GATES))}")
    if keep not in KEEPS:
        raise SelectionError(f"keep is {keep!r}; it must be one of {', '.join(map(repr, KEEPS))}")
    if activation not in ACTIVATIONS:
        raise SelectionError(f"activation is {activation!r}; it must be one of {', '.join(map(repr, ACTIVATIONS))}")


def _check(
    x: Tensor,
    memory: Tensor | None,
    input_memory: Tensor | None,
    index: Tensor,
    units: int,
    inputs: int | None,
) -> None:
    if not isinstance(index, Tensor):
        raise SelectionError(f"index is a {type(index).__name__}; it must be an int64 tensor of shape [B] or [B, S]")
    if index.dtype is not torch.int64:
        raise SelectionError(f"index has dtype {index.dtype}; it must be torch.int64: pass index.long()")
    if index.dim() not in (1, 2):
        raise SelectionError(f"index has shape {tuple(index.shape)}; it must be [B] (one class each) or [B, S] (sets)")
    if index.device != x.device:
        raise SelectionError(f"index is on {index.device}, but x on {x.device}: pass index.to(x.device)")
    samples, rows = index.shape[0], x.shape[0]
    if rows % samples if samples else rows:
        raise SelectionError(
            f"x has {rows} rows, not a multiple of the {samples} samples of index: a sample's rows must be contiguous, "
            "as in [B, ...] or [k*B, ...]"
        )
    if memory is not None:
        _check_memory("memory", memory, units, "units", x)
    if input_memory is not None:
        _check_memory("input_memory", input_memory, inputs, "inputs", x)
        if memory is not None and memory.shape[0] != input_memory.shape[0]:
            raise SelectionError(
                f"memory has {memory.shape[0]} classes, but input_memory {input_memory.shape[0]}: they must agree"
            )


def _check_memory(name: str, memory: Tensor, width: int, what: str, x: Tensor) -> None:
    if memory.dim() != 2 or memory.shape[1] != width or memory.shape[0] == 0:
        raise SelectionError(
            f"{name} has shape {tuple(memory.shape)}; the layer has {width} {what}, so it must be [classes, {width}]"
        )
    if memory.dtype is not torch.float32 and memory.dtype is not torch.float64:
        raise SelectionError(
            f"{name} has dtype {memory.dtype}; keep it in torch.float32, whatever the layer's dtype is"
        )
    if memory.device != x.device:
        raise SelectionError(f"{name} is on {memory.device}, but x on {x.device}: move the layer or x")


def _learns(memory: Tensor | None) -> bool:
    return memory is not None and memory.requires_grad and torch.is_grad_enabled()


def _keeps(memory: Tensor | None, gate: str, gate_bias: bool, bias: Tensor | None, keep: str) -> bool:
    return _learns(memory) and (keep == "gated" or not output_is_enough(gate, gate_bias, bias is not None))


def _usable(index: Tensor) -> Tensor:
    """index, cloned if it was made in inference mode and autograd is to save it."""
    if not torch.compiler.is_compiling() and index.is_inference() and not torch.is_inference_mode_enabled():
        return index.clone()
    return index


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value) if len(value) == 2 else [value[0]] * 2


def _named_padding(
    x: Tensor, weight: Tensor, padding: str, stride: Sequence[int], dilation: Sequence[int]
) -> tuple[Tensor, list[int]]:
    """x and the padding to use for "same" or "valid"; an odd total goes to the right and the bottom, as in torch."""
    if padding == "valid":
        return x, [0, 0]
    if padding != "same":
        raise ValueError(f"padding is {padding!r}; it must be 'same', 'valid', an int or a pair of ints")
    if any(s != 1 for s in stride):
        raise ValueError(f"padding='same' is not supported with stride {tuple(stride)}; use numbers")
    total = [d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True)]
    if any(t % 2 for t in total):
        x = F.pad(x, (0, total[1] % 2, 0, total[0] % 2))
    return x, [t // 2 for t in total]
