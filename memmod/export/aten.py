"""memmod's ops in ATen operators: what exported graphs hold in their place, so that they run without memmod.

Only the forward; the gates of a sample are looked up before they are computed, so that the number of classes costs
nothing. A graph cannot raise: a class out of range makes the sample's outputs NaN, as on CUDA.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import memmod.ops  # noqa: F401  (defines torch.ops.memmod)
from memmod.ops.calls import ConvCall, LayerCall, LinearCall, OutputCall
from memmod.ops.gating import distinct


def decompositions() -> dict[Any, Callable[..., Any]]:
    """From each of memmod's forward ops to its decomposition: a table for `ExportedProgram.run_decompositions`."""
    ops = torch.ops.memmod
    return {
        ops.modulated_linear.default: modulated_linear,
        ops.modulated_conv2d.default: modulated_conv2d,
        ops.modulate_output.default: modulate_output,
    }


def modulated_linear(*args: Any) -> tuple[Tensor, Tensor]:
    """(y ``[k·B, …, O]``, saved) of `memmod::modulated_linear`, whose arguments it takes."""
    call = LinearCall(*args)
    return _layer(lambda x, bias: F.linear(x, call.weight, bias), call, -1)


def modulated_conv2d(*args: Any) -> tuple[Tensor, Tensor]:
    """(y ``[k·B, O, H', W']``, saved) of `memmod::modulated_conv2d`, whose arguments it takes."""
    call = ConvCall(*args)
    return _layer(lambda x, bias: F.conv2d(x, call.weight, bias, *call.conv), call, 1)


def modulate_output(*args: Any) -> tuple[Tensor, Tensor]:
    """(y, saved) of `memmod::modulate_output`, whose arguments it takes."""
    call = OutputCall(*args)
    y = _gated(call.x, _gates(call.memory, call.index, call.gate), call.dim)
    return y, y.clone() if call.keep_gated else call.x.new_empty(0)


def _layer(layer: Callable[[Tensor, Tensor | None], Tensor], call: LayerCall, dim: int) -> tuple[Tensor, Tensor]:
    x, bias, memory, index, gate = call.x, call.bias, call.memory, call.index, call.gate
    if call.input_memory is not None:
        x = _gated(x, _gates(call.input_memory, index, gate), dim)
    z = layer(x, bias if call.gate_bias else None)
    g = z if memory is None else _gated(z, _gates(memory, index, gate), dim)
    y = g
    if bias is not None and not call.gate_bias:
        shape = [1] * g.dim()
        shape[dim] = -1
        y = g + bias.view(shape)
    if memory is None or not call.keep_gated:
        return y, y.new_empty(0)
    return y, z if gate == "identity" else g.clone() if g is y else g


def _gates(memory: Tensor, index: Tensor, gate: str) -> Tensor:
    """Each sample's multipliers: memory ``[C, K]``, index ``[B]`` or ``[B, S]`` → ``[B, K]``."""
    if index.dim() == 1:
        return _gates_of(memory, index, gate)
    return _gates_of(memory, distinct(index), gate).prod(1)


def _gates_of(memory: Tensor, index: Tensor, gate: str) -> Tensor:
    """The multipliers of one class an entry: index ``[...]`` → ``[..., K]``."""
    classes = memory.shape[0]
    rows = memory.index_select(0, index.clamp(0, classes - 1).flatten()).view(*index.shape, memory.shape[1])
    if gate == "sigmoid":
        rows = rows.sigmoid()
    elif gate == "hard":
        rows = (rows > 0).to(memory.dtype)
    rows = rows.masked_fill((index == -1).unsqueeze(-1), 1.0)
    return rows.masked_fill(((index < -1) | (index >= classes)).unsqueeze(-1), math.nan)


def _gated(x: Tensor, s: Tensor, dim: int) -> Tensor:
    """x ``[k·B, …]`` times s ``[B, K]`` along `dim`, in x's dtype; row r of x belongs to sample r // k."""
    samples, units = s.shape
    per_sample = x.shape[0] // samples
    if per_sample == 1:
        shape = [samples, *[1] * (x.dim() - 1)]
        shape[dim] = units
        return (x * s.view(shape)).to(x.dtype)
    shape = [samples, *[1] * x.dim()]
    shape[dim if dim < 0 else dim + 1] = units
    return (x.unflatten(0, (samples, per_sample)) * s.view(shape)).to(x.dtype).flatten(0, 1)
