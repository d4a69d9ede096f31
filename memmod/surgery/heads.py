"""Which of a model's outputs are the logits, and which layers make them: the classifier head."""

from __future__ import annotations

import re

from torch import Tensor, nn

from memmod.errors import ModelError
from memmod.outputs import called_logits, listed, logits_of, named_tensors, no_certain_logits
from memmod.surgery.own_linear import own_linear_layers
from memmod.surgery.plain_layers import channel_dim
from memmod.surgery.trace import Observation

HEAD_LAYERS = (nn.Linear, nn.Conv2d)
# What reshapes a head's output and computes nothing.
RESHAPES = ("view", "reshape", "flatten", "squeeze", "unsqueeze", "permute", "transpose", "contiguous", "float", "to")
# Functions that do what a layer does: the layers in front of them are not the head.
LAYER_CALLS = re.compile("^(linear|bilinear|conv)")


def choose_logits(
    model: nn.Module, observation: Observation, batch: int, num_classes: int | None, path: str | None
) -> str | None:
    """Where the logits are in what the model returns (`ModulateConfig.logits`); None where they are all of it.

    The entry at `path` where it is given; else the one called "logits", the only matrix ``[B, ...]``, or the one that
    the head made: the output of timm's classifier, or of a linear or conv layer, the last such. `num_classes` decides
    between what is left.

    Raises:
        ModelError: no such entry, or none that is certain: the candidates are listed; or values that are not finite.
    """
    output = observation.output
    found = dict(named_tensors(output))
    path = called_logits(found) if path is None else path
    if path is None:
        matrices = [
            name
            for name, tensor in found.items()
            if tensor.dim() == 2 and tensor.shape[0] == batch and tensor.is_floating_point()
        ]
        path = _chosen(model, observation, found, matrices, num_classes)
    logits = logits_of(output, path)
    if logits.shape[0] != batch:
        raise ModelError(
            f"the logits have shape {tuple(logits.shape)} for {batch} samples; memmod needs [B, num_classes], one row "
            f"per sample: the model returns {listed(found)}"
        )
    if not logits.isfinite().all():
        raise ModelError(
            "the logits of the example are not finite, so nothing can be told from them: pass another example_input, "
            "or check the model's weights and dtype"
        )
    return path or None


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


def find_heads(model: nn.Module, observation: Observation, logits: Tensor) -> dict[str, int]:
    """Names of the classifier head's linear and conv layers, with their units.

    timm's `get_classifier()` where the model has it; else the layers from which the logits ``[B, C]`` follow without
    passing through another layer, where their units are as many as the logits.
    """
    heads = _classifier_layers(model)
    if heads:
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


def resolve_num_classes(num_classes: int | None, heads: dict[str, int], logits: Tensor) -> int:
    """`num_classes`, checked against the head where there is one.

    Raises:
        ModelError: they disagree, or neither says how many classes there are.
    """
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
