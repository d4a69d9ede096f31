"""Finds layers whose output the model computes and then leaves out of its logits: a gate there would do nothing."""

from __future__ import annotations

import contextlib
import logging
import warnings
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
    """Names of the layers of whose output nothing reaches the logits, whatever it is.

    A pooling head beside the one that is used, queries of tokens that are dropped. Two runs must say so: no gradient
    of the logits comes back to the layer, and NaN in its output does not come through. A weight of zero behind it is
    another matter: it passes NaN on, both ways.

    Args:
        layers: names of modules that return one tensor.
        logits_in: the logits in what the model returns.
    """
    two = example.with_samples([0, 1])
    gradients = _gradients(model, layers, two, logits_in)
    candidates = {name for name, gradient in gradients.items() if gradient is None or not gradient.isnan()}
    if not candidates:
        return set()
    with torch.no_grad():
        expected = logits_in(run_example(model, two.args, two.kwargs))
        idle = candidates
        if not _same_with_nan(model, candidates, two, logits_in, expected):
            idle = {name for name in candidates if _same_with_nan(model, {name}, two, logits_in, expected)}
    _warn(model, [name for name, gradient in gradients.items() if gradient is None and name not in idle])
    return idle


def _warn(model: nn.Module, cut_off: list[str]) -> None:
    if cut_off:
        names = ", ".join(cut_off[:8]) + (f" and {len(cut_off) - 8} more" if len(cut_off) > 8 else "")
        logger.warning(
            "no gradient of the logits of %s comes back to %s (a quantised layer behind it that has none, a detach, "
            "no_grad): a memory there gates, but cannot be trained; train it before that part is put in, and take it "
            "over with load_memory_state()",
            type(model).__name__,
            names,
        )


def _gradients(
    model: nn.Module, layers: Iterable[str], example: Example, logits_in: Callable[[Any], Tensor]
) -> dict[str, Tensor | None]:
    """The sum of what a gradient of NaN in all logits is at each layer's output, None where none arrives.

    No layer where that cannot be told.
    """
    probes: list[tuple[str, Tensor]] = []

    def add_probe(name: str, output: Tensor) -> Tensor:
        probe = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
        probes.append((name, probe))
        return output + probe

    try:
        with warnings.catch_warnings(), torch.enable_grad(), _outputs_replaced(model, layers, add_probe):
            # Of quantised functions, that they have no gradient: that is told below.
            warnings.simplefilter("ignore")
            logits = logits_in(run_example(model, example.args, example.kwargs))
            # A backward that runs layers again (activation checkpointing) adds probes of which nothing is asked.
            forward = list(probes)
            if not logits.requires_grad:
                return {name: None for name, _ in forward}
            nan = torch.full_like(logits, torch.nan)
            gradients = torch.autograd.grad(logits, [probe for _, probe in forward], nan, allow_unused=True)
    # Functions of other libraries raise what they like; verify() tells of gates without effect too.
    except Exception as error:
        logger.debug("whether layers reach the logits of %s cannot be told: %s", type(model).__name__, error)
        return {}
    found: dict[str, Tensor | None] = {}
    for (name, _), gradient in zip(forward, gradients, strict=True):
        before = found.get(name)
        found[name] = gradient if before is None else before if gradient is None else before + gradient
    return found


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
