"""Turns a copy of a base into a modulated model, step by step."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from memmod.errors import ModelError
from memmod.files.state_hash import state_sha256
from memmod.surgery.attention import open_attention
from memmod.surgery.base_copy import base_copy
from memmod.surgery.config import ModulateConfig
from memmod.surgery.effect import layers_without_effect
from memmod.surgery.example import Example, default_example
from memmod.surgery.fold import FOLD_TOLERANCE, fold
from memmod.surgery.gate import gate_layers
from memmod.surgery.heads import choose_output, find_heads, resolve_num_classes, verified_in
from memmod.surgery.inplace import protect_outputs
from memmod.surgery.other_parameters import note_other_parameters
from memmod.surgery.own_linear import own_linear_layers
from memmod.surgery.plan import is_layer, plan_layers
from memmod.surgery.qkv_bias import join_biases
from memmod.surgery.record import Row, Surgery
from memmod.surgery.relu import fuse_activations
from memmod.surgery.trace import Observation, observe, run_example, same_output

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Changes:
    """What was done to a copy of a base, to be told and undone.

    Args:
        num_classes: C.
        config: as given, with the place of the logits that was found.
        base_sha256: of the base's own state, before anything was changed.
        input_shape: of one sample of the example.
        rows: what became of each layer.
        originals: (name, module) of everything that was replaced, in that order.
        attributes: (name, attribute, value before) of everything that was set.
        trainable: which parameters of the base required gradients.
        gated_weights, weights: how many values of weights are gated, of how many that could be.
    """

    num_classes: int
    config: ModulateConfig
    base_sha256: str
    input_shape: tuple[int, ...]
    rows: tuple[Row, ...]
    originals: tuple[tuple[str, nn.Module], ...]
    attributes: tuple[tuple[str, str, Any], ...]
    trainable: dict[str, bool]
    gated_weights: int
    weights: int


@torch.inference_mode(False)
def modify(
    model: nn.Module,
    num_classes: int | None = None,
    example_input: Any = None,
    config: ModulateConfig | None = None,
    only: set[str] | None = None,
) -> tuple[nn.Module, Changes]:
    """A copy of `model` whose layers carry memories, and what was done; the arguments are those of `memmod.modulate`.

    Args:
        only: gate exactly the layers of these names, as a memory file lists them.

    Raises:
        ModelError: as `memmod.modulate`.
    """
    config = config or ModulateConfig()
    base = base_copy(model)
    example = default_example(base) if example_input is None else Example.of(example_input)
    trainable = {name: parameter.requires_grad for name, parameter in base.named_parameters()}
    base_sha256 = state_sha256(base)
    surgery = Surgery(base.eval().requires_grad_(False))

    first = observe(surgery.model, example.args, example.kwargs)
    config = choose_output(base, first, example, num_classes, config)
    verified = verified_in(first.output, config)
    heads = find_heads(surgery.model, first, verified, config)
    num_classes = resolve_num_classes(num_classes, heads, verified, config)

    open_attention(surgery, num_classes, config)
    join_biases(surgery, first, example)
    before, first = first, observe(surgery.model, example.args, example.kwargs)
    _check_draws(surgery.model, example, config, before, first)
    changed = example.with_sample_changed(1)
    second = observe(surgery.model, changed.args, changed.kwargs)
    norms = fold(surgery, first, example) if config.fold and not config.behind else {}
    idle = _idle_layers(surgery.model, first, example, config) if only is None else set()
    chosen = plan_layers(surgery, first, second, heads, norms, config, example, idle, only)
    gated = gate_layers(surgery, chosen, norms, first, num_classes, config)
    note_other_parameters(surgery, first)
    if config.fuse:
        fuse_activations(surgery, gated, example)
    protect_outputs(surgery, gated, example)
    record = (tuple(surgery.rows), tuple(surgery.originals), tuple(surgery.attributes))
    counts = (surgery.gated_weights, surgery.weights)
    return surgery.model, Changes(num_classes, config, base_sha256, example.shape, *record, trainable, *counts)


def _idle_layers(model: nn.Module, first: Observation, example: Example, config: ModulateConfig) -> set[str]:
    layers = [name for name, module in model.named_modules() if first.modules.get(name) and is_layer(module)]
    layers += own_linear_layers(model, first)
    return layers_without_effect(model, layers, example, lambda output: verified_in(output, config))


def _check_draws(
    model: nn.Module, example: Example, config: ModulateConfig, before: Observation, first: Observation
) -> None:
    """A model may draw from torch's, Python's or numpy's generators; with fixed draws its runs must agree.

    Raises:
        ModelError: two runs of the same example differ.
    """
    name = type(model).__name__
    if first.is_random:
        logger.warning(
            "%s draws random numbers in eval mode (a functional dropout with training=True, say): its logits differ "
            "from call to call; modulate() and verify() fix the draws",
            name,
        )
    runs = [verified_in(run.output, config) for run in (before, first)]
    if same_output(*runs, FOLD_TOLERANCE):
        return
    with torch.no_grad():
        again = verified_in(run_example(model, example.args, example.kwargs), config)
    if not same_output(again, runs[1], FOLD_TOLERANCE):
        raise ModelError(
            f"the output of {name} is random, or depends on earlier calls: two runs of the same example in eval mode "
            "with the same seed differ, so nothing can be told from it; switch that part off (a generator of its own, "
            "a counter, statistics that are updated in eval mode)"
        )
