"""Finds weights that a model uses outside of registered layers: loose parameters, and layers kept in plain lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from memmod.surgery.trace import FunctionCall, Observation

# In these the first tensor is what the weight is applied to.
LAYERS = (
    *("linear", "bilinear", "conv1d", "conv2d", "conv3d", "multi_head_attention_forward"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
)
MATMULS = ("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "tensordot", "mv", "inner")
CONTAINERS = {list: "nn.ModuleList", tuple: "nn.ModuleList", dict: "nn.ModuleDict"}
SEARCH_DEPTH = 4


class LooseWeight(NamedTuple):
    """Where a weight is, what holds it, and why it has no gate."""

    name: str
    kind: str
    reason: str
    weight: Tensor


def loose_weights(
    model: nn.Module, observation: Observation, owned: set[int], inputs: Iterable[int]
) -> list[LooseWeight]:
    """The parameters that act on the example as a layer's weight does, but belong to no layer that memmod looks at.

    Args:
        owned: ids of the parameters that are seen already, as a layer's.
        inputs: ids of the example's tensors.
    """
    registered = {id(p): name for name, p in model.named_parameters()}
    reached = observation.reached_from(inputs)
    uses: dict[int, FunctionCall] = {}
    for call in observation.calls:
        if call.name in (*LAYERS, *MATMULS) and reached.intersection(call.outputs):
            operands = call.inputs[1:] if call.name in LAYERS else call.inputs
            for operand in operands:
                for parameter in _parameters_behind(operand, observation, reached):
                    uses.setdefault(parameter, call)
    places: dict[int, LooseWeight] = {}
    found: dict[tuple[str, str], LooseWeight] = {}
    for parameter, call in uses.items():
        if parameter in owned:
            continue
        if parameter in registered:
            reason = f"a weight that {_word(call)} reads without a layer"
            loose = LooseWeight(registered[parameter], "Parameter", reason, observation.tensors[parameter])
        else:
            places = places or dict(_unregistered(model))
            loose = places.get(parameter) or _outside(observation, parameter, call)
        found.setdefault((loose.name, loose.reason), loose)
    return list(found.values())


def _word(call: FunctionCall) -> str:
    return "@" if call.name in ("__matmul__", "__rmatmul__") else call.name


def _parameters_behind(operand: int, observation: Observation, reached: set[int]) -> Iterator[int]:
    """The parameters that an operand is, or is made of alone (transposed, masked, a product of two)."""
    todo, seen = [operand], set()
    while todo:
        tensor_id = todo.pop()
        if tensor_id in seen or tensor_id in reached:
            continue
        seen.add(tensor_id)
        tensor = observation.tensors[tensor_id]
        if isinstance(tensor, nn.Parameter):
            if tensor.dim() >= 2:
                yield tensor_id
            continue
        # What a layer made is an activation, a learned query say, and no weight.
        todo += [i for call in observation.producers(tensor_id) if call.name not in LAYERS for i in call.inputs]


def _outside(observation: Observation, parameter: int, call: FunctionCall) -> LooseWeight:
    weight = observation.tensors[parameter]
    return LooseWeight(
        f"<{_word(call)} in {call.module or 'the model'}>",
        "Parameter",
        f"a weight {list(weight.shape)} that the model does not hold (a closure or a global): neither copied nor in "
        "the base's hash; register it as a parameter or a submodule",
        weight,
    )


def _unregistered(model: nn.Module) -> Iterator[tuple[int, LooseWeight]]:
    """(id of the parameter, where it is kept) for what hides in plain attributes of the model's modules."""
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        for attribute, value in vars(module).items():
            if attribute.startswith("_") and isinstance(value, dict):
                continue
            advice = CONTAINERS.get(type(value), "a registered submodule")
            for path, part in _search(value, attribute, SEARCH_DEPTH):
                yield from _described(prefix + path, part, type(value).__name__, prefix + attribute, advice)


def _described(
    path: str, part: nn.Module | nn.Parameter, container: str, attribute: str, advice: str
) -> Iterator[tuple[int, LooseWeight]]:
    advice = advice if isinstance(part, nn.Module) else "nn.ParameterList or nn.ParameterDict"
    reason = (
        f"kept in a plain {container} ({attribute}), so it is not registered: use {advice}; as it is, it is neither in "
        "the state dict nor in the base's hash"
    )
    if isinstance(part, nn.Parameter):
        yield id(part), LooseWeight(path, "Parameter", reason, part)
        return
    for name, module in part.named_modules():
        for parameter in module.parameters(recurse=False):
            place = f"{path}.{name}" if name else path
            yield id(parameter), LooseWeight(place, type(module).__name__, reason, parameter)


def _search(value: Any, path: str, depth: int) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    if isinstance(value, (nn.Module, nn.Parameter)):
        yield path, value
    elif depth > 0:
        for key, part in _inside(value):
            yield from _search(part, f"{path}{key}", depth - 1)


def _inside(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, (list, tuple)):
        return [(f"[{place}]", part) for place, part in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return [("[]", part) for part in value]
    if isinstance(value, type) or callable(value):
        return []
    return [(f".{name}", part) for name, part in getattr(value, "__dict__", {}).items()]
