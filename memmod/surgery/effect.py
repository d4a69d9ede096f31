"""Finds layers whose output the model computes and then leaves out of its logits: a gate there would do nothing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from memmod.surgery.example import Example
from memmod.surgery.trace import run_example

logger = logging.getLogger(__name__)


def layers_without_effect(
    model: nn.Module, layers: Iterable[str], example: Example, logits_in: Callable[[Any], Tensor]
) -> set[str]:
    """Names of the layers that nothing of reaches the logits, whatever their output is.

    A pooling head beside the one that is used, queries of tokens that are dropped. Two runs must say so: no gradient
    of the logits comes back to the layer, and NaN in its output does not come through. A weight of zero behind it is
    another matter: it passes NaN on, both ways.

    Args:
        layers: names of modules that return one tensor.
        logits_in: the logits in what the model returns.
    """
    two = example.with_samples([0, 1])
    candidates = _without_gradient(model, layers, two, logits_in)
    if not candidates:
        return set()
    with torch.no_grad():
        expected = logits_in(run_example(model, two.args, two.kwargs))
        if _same_with_nan(model, candidates, two, logits_in, expected):
            return candidates
        return {name for name in candidates if _same_with_nan(model, {name}, two, logits_in, expected)}


def _without_gradient(
    model: nn.Module, layers: Iterable[str], example: Example, logits_in: Callable[[Any], Tensor]
) -> set[str]:
    """The layers that a gradient of NaN in all logits does not come back to; none where that cannot be told."""
    probes: list[tuple[str, Tensor]] = []

    def add_probe(name: str, output: Tensor) -> Tensor:
        probe = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
        probes.append((name, probe))
        return output + probe

    try:
        with torch.enable_grad(), _outputs_replaced(model, layers, add_probe):
            logits = logits_in(run_example(model, example.args, example.kwargs))
            if not logits.requires_grad:
                return set()
            nan = torch.full_like(logits, torch.nan)
            gradients = torch.autograd.grad(logits, [probe for _, probe in probes], nan, allow_unused=True)
    # Functions of other libraries raise what they like; verify() tells of gates without effect too.
    except Exception as error:
        logger.debug("whether layers reach the logits of %s cannot be told: %s", type(model).__name__, error)
        return set()
    reached = {name for (name, _), g in zip(probes, gradients, strict=True) if g is not None and g.isnan()}
    return {name for name, _ in probes} - reached


def _same_with_nan(
    model: nn.Module, layers: Iterable[str], example: Example, logits_in: Callable[[Any], Tensor], expected: Tensor
) -> bool:
    """Whether the logits stay the same with NaN in the outputs of these layers."""
    try:
        with _outputs_replaced(model, layers, lambda _, output: torch.full_like(output, torch.nan)):
            return torch.equal(logits_in(run_example(model, example.args, example.kwargs)), expected)
    # NaN may end up in an index, say.
    except Exception:
        return False


@contextlib.contextmanager
def _outputs_replaced(
    model: nn.Module, layers: Iterable[str], replacement: Callable[[str, Tensor], Tensor]
) -> Iterator[None]:
    def hook_of(name: str) -> Callable[..., Any]:
        def hook(_module: nn.Module, _args: tuple, output: Any) -> Any:
            floating = isinstance(output, Tensor) and output.is_floating_point()
            return replacement(name, output) if floating else output

        return hook

    with contextlib.ExitStack() as hooks:
        for name in layers:
            hooks.callback(model.get_submodule(name).register_forward_hook(hook_of(name)).remove)
        yield
