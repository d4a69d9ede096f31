"""Which of a model's outputs are the logits, and which layers make them: the classifier head."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from memmod.errors import ModelError
from memmod.outputs import called_logits, entry_of, listed, logits_of, named_tensors, no_certain_logits
from memmod.surgery.config import ModulateConfig
from memmod.surgery.example import Example
from memmod.surgery.own_linear import own_linear_layers
from memmod.surgery.plain_layers import channel_dim
from memmod.surgery.trace import Observation, run_example

HEAD_LAYERS = (nn.Linear, nn.Conv2d)
# What reshapes a head's output and computes nothing.
RESHAPES = ("view", "reshape", "flatten", "squeeze", "unsqueeze", "permute", "transpose", "contiguous", "float", "to")
# Functions that do what a layer does: the layers in front of them are not the head.
LAYER_CALLS = re.compile("^(linear|bilinear|conv)")
# What Hugging Face's models call the features that they return.
EMBEDDING = re.compile(r"(^|[._])(embeds?|embeddings?|pooler_output|hidden_states?)$")


def choose_output(
    model: nn.Module, observation: Observation, example: Example, num_classes: int | None, config: ModulateConfig
) -> ModulateConfig:
    """The config with the place of what gates must change in what the model returns: `logits`, or `output`.

    As `output` says, where it is given. Else the logits: the entry at `logits` where that is given; else the one called
    "logits", the only matrix ``[B, ...]``, or the one that the head made: the output of timm's classifier, or of a
    linear or conv layer, the last such; `num_classes` decides between what is left. An only embedding is taken as
    `output` where `num_classes` says how many concepts there are.

    Raises:
        ModelError: no such entry, or none that is certain: the candidates are listed; the model has no classifier, or
            scores the samples of a batch against each other; or values that are not finite.
    """
    found = dict(named_tensors(observation.output))
    if config.output is None:
        path = called_logits(found) if config.logits is None else config.logits
        if path is None:
            matrices = [
                name
                for name, tensor in found.items()
                if tensor.dim() == 2 and tensor.shape[0] == example.batch and tensor.is_floating_point()
            ]
            pairwise = [name for name in matrices if _scores_pairs(model, example, found[name], name)]
            classified = [name for name in matrices if name not in pairwise and not EMBEDDING.search(name)]
            if matrices and not classified:
                if pairwise or len(matrices) > 1 or num_classes is None:
                    raise _no_classifier(model, found, matrices, pairwise)
                path, config = None, replace(config, output=matrices[0])
            else:
                path = _chosen(model, observation, found, classified, num_classes)
        elif path in found and _scores_pairs(model, example, found[path], path):
            raise _no_classifier(model, found, [name for name in found if EMBEDDING.search(name)], [path])
        config = replace(config, logits=path or None)
    verified = verified_in(observation.output, config)
    if verified.shape[0] != example.batch:
        what = "logits have" if config.output is None else f"output {config.output!r} has"
        raise ModelError(
            f"the {what} shape {tuple(verified.shape)} for {example.batch} samples; memmod needs "
            f"{'[B, num_classes]' if config.output is None else '[B, ...]'}, one row per sample: the model returns "
            f"{listed(found)}"
        )
    if not verified.isfinite().all():
        raise ModelError(
            f"the {'logits' if config.output is None else 'output'} of the example are not finite, so nothing can be "
            "told from them: pass another example_input, or check the model's weights and dtype"
        )
    return config


def verified_in(output: Any, config: ModulateConfig) -> Tensor:
    """What gates must change in what the model returned: the logits ``[B, C]``, or `ModulateConfig.output`."""
    return logits_of(output, config.logits) if config.output is None else entry_of(output, config.output)


def _scores_pairs(model: nn.Module, example: Example, scores: Tensor, path: str) -> bool:
    """Whether a matrix ``[B, B]`` scores every sample against every other one: one sample makes its row and column."""
    if tuple(scores.shape) != (example.batch, example.batch):
        return False
    changed = example.with_sample_changed(1)
    with torch.no_grad():
        after = dict(named_tensors(run_example(model, changed.args, changed.kwargs))).get(path)
    if after is None or after.shape != scores.shape:
        return False
    others = [sample for sample in range(example.batch) if sample != 1]
    return not torch.equal(scores[others, 1], after[others, 1])


def _no_classifier(model: nn.Module, found: dict[str, Tensor], matrices: list[str], pairwise: list[str]) -> ModelError:
    embeddings = [name for name in matrices if EMBEDDING.search(name)]
    advice = (
        f"name what forgetting has to change, such as ModulateConfig(output={(embeddings or list(found))[0]!r}), and "
        "pass num_classes, the number of concepts to forget"
    )
    if pairwise:
        name = pairwise[0]
        return ModelError(
            f"{type(model).__name__} has no classifier: {name!r} {tuple(found[name].shape)} scores every sample of the "
            f"batch against every other, so no column is a class: {advice}. Where the other side is a fixed list of "
            "classes (their texts, say), pass an example with another number of images than of classes"
        )
    return ModelError(
        f"{type(model).__name__} has no classifier: it returns embeddings, {listed({p: found[p] for p in matrices})}: "
        f"{advice}; if their columns are classes after all, say so with ModulateConfig(logits={matrices[0]!r})"
    )


def _chosen(
    model: nn.Module, observation: Observation, found: dict[str, Tensor], matrices: list[str], num_classes: int | None
) -> str:
    if len(matrices) == 1:
        return matrices[0]
    classifiers = _classifier_layers(model)
    made_by = {name: _direct_layer(model, observation, id(found[name])) for name in matrices}
    heads = [name for name in matrices if made_by[name] is not None]
    choices = (
        [name for name in heads if made_by[name] in classifiers],
        heads,
        [name for name in heads if _follows_from_all(observation, found, name, heads)],
        [name for name in matrices if found[name].shape[1] == num_classes],
    )
    for chosen in choices:
        if len(chosen) == 1:
            return chosen[0]
    raise no_certain_logits(found, matrices)


def _follows_from_all(observation: Observation, found: dict[str, Tensor], name: str, others: list[str]) -> bool:
    own = id(found[name])
    return all(own in observation.reached_from([id(found[other])]) for other in others if other != name)


def _direct_layer(model: nn.Module, observation: Observation, tensor_id: int) -> str | None:
    """The linear or conv layer whose output, at most reshaped, is this tensor."""
    made_by = _layer_outputs(model, observation)
    seen: set[int] = set()
    while tensor_id not in seen:
        if tensor_id in made_by:
            return made_by[tensor_id]
        seen.add(tensor_id)
        calls = [call for call in observation.producers(tensor_id) if call.name in RESHAPES]
        tensor_id = calls[0].inputs[0] if calls else tensor_id
    return None


def _layer_outputs(model: nn.Module, observation: Observation) -> dict[int, str]:
    own = own_linear_layers(model, observation)
    return {
        id(t): name
        for name, module in model.named_modules()
        if isinstance(module, HEAD_LAYERS) or name in own
        for call in observation.modules.get(name, ())
        for t in call.outputs
    }


def _classifier_layers(model: nn.Module) -> dict[str, int]:
    """Names and units of the layers inside timm's `get_classifier()`."""
    if not hasattr(model, "get_classifier"):
        return {}
    names = {id(module): name for name, module in model.named_modules()}
    found = model.get_classifier()
    parts = found if isinstance(found, (tuple, list)) else (found,)
    inner = [m for part in parts if isinstance(part, nn.Module) for m in part.modules() if isinstance(m, HEAD_LAYERS)]
    return {names[id(m)]: m.weight.shape[0] for m in inner if id(m) in names}


def find_heads(
    model: nn.Module, observation: Observation, logits: Tensor, config: ModulateConfig | None = None
) -> dict[str, int]:
    """Names of the classifier head's linear and conv layers, with their units; none behind `ModulateConfig.output`.

    timm's `get_classifier()` where the model has it; else the layers from which the logits ``[B, C]`` follow without
    passing through another layer, where their units are as many as the logits.
    """
    heads = _classifier_layers(model)
    if heads or (config is not None and config.output is not None):
        return heads
    made_by = _layer_outputs(model, observation)
    todo, seen = [id(logits)], set()
    while todo:
        tensor_id = todo.pop()
        if tensor_id in seen:
            continue
        seen.add(tensor_id)
        name = made_by.get(tensor_id)
        if name is None:
            calls = observation.producers(tensor_id)
            todo += [i for call in calls if not LAYER_CALLS.search(call.name) for i in call.inputs]
            continue
        dim = channel_dim(model.get_submodule(name))
        units = observation.modules[name][0].outputs[0].shape[dim]
        if units == logits.shape[1]:
            heads[name] = units
    return heads


def resolve_num_classes(num_classes: int | None, heads: dict[str, int], logits: Tensor, config: ModulateConfig) -> int:
    """`num_classes`, checked against the head where there is one that makes the logits.

    Raises:
        ModelError: they disagree, or neither says how many classes there are.
    """
    if config.output is not None:
        if num_classes is None:
            raise ModelError(
                f"ModulateConfig.output is {config.output!r}, which is no classifier's: pass num_classes, the number "
                "of concepts to forget"
            )
        return num_classes
    if not heads:
        if num_classes is None:
            raise ModelError("the model has no classifier head that memmod can find: pass num_classes")
        return num_classes
    classes = logits.shape[1]
    if num_classes is not None and num_classes != classes:
        raise ModelError(
            f"num_classes is {num_classes}, but the model's head ({', '.join(heads)}) gives {classes} logits: "
            f"pass num_classes={classes} or leave it out"
        )
    return classes
