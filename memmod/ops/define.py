"""The torch.library side that the ops share: defining, checking classes, and the errors autograd should give."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from memmod.errors import SelectionError
from memmod.ops import flop_formulas
from memmod.ops.modes import counts_may_run, ordinary

_LIBRARY = torch.library.Library("memmod", "DEF")
_DEVICES = ("CPU", "CUDA")

CHECK_ON_DEVICE = os.environ.get("MEMMOD_CHECK") == "1"


def define(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define `memmod::name` with its implementation for real tensors and for fake ones."""

    def run_without_tangents(*args: Any) -> Any:
        # PyTorch gives such an op's outputs no tangents, which reads as a derivative of 0.
        if forward_ad._current_level >= 0:
            raise RuntimeError(
                f"memmod::{name} has no forward-mode derivative: call memmod.functional or the modules, which compute "
                "in plain PyTorch there"
            )
        return run(*args)

    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    for device in _DEVICES:
        _LIBRARY.impl(name, run_without_tangents, device)
    torch.library.register_fake(f"memmod::{name}", fake, lib=_LIBRARY)


# The gradients of an op's tensors, by a function or an op that takes what was saved: (ctx, that, dy) -> one per input.
Backward = Callable[[Any, Callable[..., Any], "Tensor | None"], "tuple[Tensor | None, ...]"]


def define_autograd(
    name: str,
    run: Callable[..., Any],
    run_backward: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Backward,
) -> Callable[..., Tensor]:
    """Give `memmod::name` its gradients, and `memmod::name_backward` a worded refusal to be differentiated again.

    Returns what eager code calls instead of the op: a function of the same arguments that gives y. An ordinary call it
    serves by a plain autograd function: with torch.library's, which serves tracers and modes too, a step of a small
    layer took 127 µs of the host, and so 83 (Zen 5, kernels not counted).
    """
    op = getattr(torch.ops.memmod, name).default
    backward_op = getattr(torch.ops.memmod, f"{name}_backward").default

    def by_ops(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        return backward(ctx, backward_op, dy)

    def refuse(ctx: Any, *gradients: Tensor | None) -> None:
        raise RuntimeError(
            f"memmod::{name} has no second-order gradients: its backward cannot be differentiated. Compute the inner "
            "gradient without create_graph=True, or use plain PyTorch layers (wf.bake(...)) for this computation"
        )

    torch.library.register_autograd(f"memmod::{name}", by_ops, setup_context=setup_context, lib=_LIBRARY)
    torch.library.register_autograd(f"memmod::{name}_backward", refuse, lib=_LIBRARY)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
            output = run(*args)
            setup_context(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
            # The op refuses to be differentiated, which only a graph of gradients can ask for.
            return backward(ctx, backward_op if torch.is_grad_enabled() else run_backward, dy)

    Function.__name__ = Function.__qualname__ = name

    def apply(*args: Any) -> Tensor:
        tensors = [a for a in args if isinstance(a, Tensor)]
        if not ordinary(tensors):
            if counts_may_run():
                flop_formulas.register()
            return op(*args)[0]
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return Function.apply(*args)[0]
        return run(*args)[0]

    return apply


def check_classes(index: Tensor, *memories: Tensor | None) -> None:
    """Raise SelectionError for a class that the memories have no row for.

    On CUDA this would have to wait for the device: there the outputs of such a row are NaN, and MEMMOD_CHECK=1 adds an
    assertion on the device.
    """
    classes = next((memory.shape[0] for memory in memories if memory is not None), None)
    if classes is None or index.numel() == 0:
        return
    if index.device.type != "cpu":
        if CHECK_ON_DEVICE:
            torch._assert_async(
                ((index >= -1) & (index < classes)).all(), f"memmod: a selected class is not in -1 to {classes - 1}"
            )
        return
    low, high = (int(value) for value in index.aminmax())
    if low < -1 or high >= classes:
        wrong = high if high >= classes else low
        raise SelectionError(
            f"class {wrong} was selected, but the memory has {classes} classes: use 0 to {classes - 1}, or -1 for "
            "nothing"
        )


def check_differentiable(name: str, gate: str, memories: Sequence[bool]) -> None:
    """Raise RuntimeError where the gradient of a hard gate's memory is asked for."""
    if gate == "hard" and any(memories):
        raise RuntimeError(
            f"memmod::{name}: the gate 'hard' is a step, its memory has no gradient. Train with gate='sigmoid', or "
            "call memory.requires_grad_(False)"
        )


def saved_tensors(ctx: Any, name: str) -> tuple[Tensor | None, ...]:
    """What the forward saved; an in-place change of it is reported with the way out."""
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "inplace operation" not in str(error):
            raise
        raise RuntimeError(
            f"the backward of memmod::{name} needs a tensor that was changed in place after the forward. If that is "
            "the layer's own output (`out += identity`, an activation with inplace=True), build the layer with "
            f'keep="gated" or write the operation out of place. PyTorch says: {error}'
        ) from error
