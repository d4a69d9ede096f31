"""Networks whose gates stand anywhere between open and trained: s_t = 1 - t·(1 - s), set by hooks of the layers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from memmod.compiled import is_compiled
from memmod.errors import ModelError
from memmod.model import ModulatedModel
from memmod.nn.modulated import Modulated

UNITS, INPUTS = "memory", "input_memory"


@dataclass(frozen=True)
class GatedTensor:
    """What one memory gates in one call of its layer.

    Args:
        memory: the memory's name, as in `ModulatedModel.gates`.
        open: the tensor before its gates, ``[k·B, …]``; row r belongs to sample r // k.
        gated: the tensor behind them.
        dim: where its units are.
    """

    memory: str
    open: Tensor
    gated: Tensor
    dim: int


OnGated = Callable[[GatedTensor], None]


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook for calls by the thread that made it; those of others, of a model that serves meanwhile, pass by."""
    owner = threading.get_ident()
    return lambda *args: hook(*args) if threading.get_ident() == owner else None


def gated_layers(wf: ModulatedModel) -> dict[str, Modulated]:
    """The layers that carry memories, by their names in `wf.model`.

    Raises:
        ModelError: compiled layers, whose hooks may not run.
    """
    layers: dict[str, Modulated] = {}
    for name, module in (("", wf), *wf.model.named_modules()):
        if is_compiled(module):
            raise ModelError(
                f"{name or 'the model'} is compiled, so that its layers cannot be watched: explain the model that it "
                "was compiled from"
            )
        if isinstance(module, Modulated) and module.memories():
            layers[name] = module
    return layers


def memory_name(layer: str, own: str) -> str:
    """A memory's name in `ModulatedModel.gates`: of the memory `own` of a layer."""
    return f"{layer}.{own}" if layer else own


@contextmanager
def gates_at(wf: ModulatedModel, multipliers: Mapping[str, Tensor], on_gated: OnGated | None = None) -> Iterator[None]:
    """While open, this thread's calls of `wf` that select nothing have these gates.

    Args:
        multipliers: of every memory, by its name, ``[B, K]``: the gates of each sample.
        on_gated: called for every gated tensor, whose `gated` then requires a gradient.

    Raises:
        ModelError: in the end, layers with memories that were not called as modules, so that their gates did not act.
    """
    layers, called = gated_layers(wf), set()
    handles = []
    try:
        for name, layer in layers.items():
            if layer.input_memory is not None:
                handles.append(
                    layer.register_forward_pre_hook(in_this_thread(_before(name, layer, multipliers, on_gated)))
                )
            handles.append(
                layer.register_forward_hook(in_this_thread(_behind(name, layer, multipliers, on_gated, called)))
            )
        yield
        missed = [name for name in layers if name not in called]
        if missed:
            raise ModelError(
                f"the layer {missed[0]!r} and {len(missed) - 1} others have memories, but the network reads their "
                "weights without calling them: their gates cannot be followed"
            )
    finally:
        for handle in handles:
            handle.remove()


def _before(name: str, layer: Modulated, multipliers: Mapping[str, Tensor], on_gated: OnGated | None):
    memory, dim = memory_name(name, INPUTS), unit_dim(layer)

    def hook(_layer: nn.Module, args: tuple) -> tuple:
        x = args[0]
        gated = _gate(x, multipliers[memory], dim)
        return (_told(on_gated, memory, x, gated, dim), *args[1:])

    return hook


def _behind(name: str, layer: Modulated, multipliers: Mapping[str, Tensor], on_gated: OnGated | None, called: set[str]):
    memory, dim = memory_name(name, UNITS), unit_dim(layer)
    # Outside of the gate.
    bias = None if layer.gate_bias else getattr(layer, "bias", None)

    def hook(_layer: nn.Module, _args: tuple, output: Tensor) -> Tensor | None:
        called.add(name)
        if layer.memory is None:
            return None
        part = output if bias is None else output - _along(bias.unsqueeze(0), output.dim(), dim)
        gated = _told(on_gated, memory, part, _gate(part, multipliers[memory], dim), dim)
        if bias is not None:
            return gated + _along(bias.unsqueeze(0), output.dim(), dim)
        # What the network overwrites must not be what the gradient is asked for.
        return gated.clone() if layer.keep == "gated" else gated

    return hook


def _told(on_gated: OnGated | None, memory: str, open_: Tensor, gated: Tensor, dim: int) -> Tensor:
    if on_gated is not None:
        if not gated.requires_grad:
            gated.requires_grad_()
        on_gated(GatedTensor(memory, open_.detach(), gated, dim))
    return gated


def unit_dim(layer: Modulated) -> int:
    """Where a layer's units are in its output, and its input's in its input."""
    if isinstance(layer, nn.Linear):
        return -1
    return getattr(layer, "dim", 1)


def _gate(x: Tensor, multipliers: Tensor, dim: int) -> Tensor:
    samples, rows = multipliers.shape[0], x.shape[0]
    if rows % samples:
        raise ModelError(f"a layer has {rows} rows, not a multiple of the {samples} samples")
    each = multipliers.repeat_interleave(rows // samples, 0) if rows != samples else multipliers
    return x * _along(each, x.dim(), dim).to(x.dtype)


def _along(s: Tensor, dims: int, dim: int) -> Tensor:
    shape = [1] * dims
    shape[0], shape[dim % dims] = s.shape
    return s.view(shape)
