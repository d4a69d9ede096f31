"""Puts modulated layers in the place of those that were chosen."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from memmod.errors import ModelError
from memmod.nn import ModulatedConv2d, ModulatedLinear, ModulatedOutput
from memmod.nn.modulated import Modulated
from memmod.surgery.config import ModulateConfig
from memmod.surgery.plain_layers import channel_dim, is_plain
from memmod.surgery.record import Surgery
from memmod.surgery.replace import plain_linear
from memmod.surgery.trace import Observation


def gate_layers(
    surgery: Surgery,
    chosen: list[tuple[str, str | None]],
    norms: dict[str, nn.BatchNorm2d],
    observation: Observation,
    num_classes: int,
    config: ModulateConfig,
) -> list[str]:
    """Put modulated layers in the place of the chosen ones; returns the names of the modulated layers."""
    gated = []
    shared = _shared_weights(surgery.model)
    for name, behind in chosen:
        module = surgery.model.get_submodule(name)
        if isinstance(module, Modulated):
            if module.num_classes != num_classes:
                raise ModelError(
                    f"{name} has memories for {module.num_classes} classes, but the model has {num_classes}: "
                    "make the layer with the model's number of classes"
                )
            surgery.note(name, module, "gated")
            gated.append(name)
            continue
        granularity = config.granularity
        if behind is not None and granularity != "input":
            _gate_behind(surgery, name, behind, observation, num_classes, config)
            gated.append(behind)
            if granularity == "unit":
                continue
            granularity = "input"
        options = config.layer_options | {"granularity": granularity}
        new = _modulated(module, name, observation, num_classes, options, config.behind)
        if name in norms:
            new.set_norm(norms[name])
        surgery.note(name, module, "gated", _why(module, new, norms.get(name)) or shared.get(name, ""))
        surgery.replace(name, new)
        gated.append(name)
    _drop_projections_not_chosen(surgery, {name for name, _ in chosen})
    if not gated:
        raise ModelError(
            f"{type(surgery.model).__name__} has no linear or conv layer that can be gated:\n"
            + "\n".join(f"  {row.name}: {row.reason or row.action}" for row in surgery.rows)
        )
    return gated


def _shared_weights(model: nn.Module) -> dict[str, str]:
    """What to say of layers that share their weight with others: each gates its own output."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        layer, _, own = name.rpartition(".")
        if own == "weight":
            names.setdefault(id(parameter), []).append(layer)
    return {
        layer: f"shares its weight with {', '.join(other for other in group if other != layer)}"
        for group in names.values()
        if len(group) > 1
        for layer in group
    }


def _gate_behind(
    surgery: Surgery, name: str, behind: str, observation: Observation, num_classes: int, config: ModulateConfig
) -> None:
    module, norm = surgery.model.get_submodule(name), surgery.model.get_submodule(behind)
    layer = ModulatedOutput.from_module(
        norm,
        observation.modules[name][0].outputs[0].shape[channel_dim(module)],
        num_classes,
        dim=channel_dim(module),
        gate=config.gate,
        init=config.init,
    )
    layer.example_shape = tuple(observation.modules[behind][0].inputs[0].shape)
    surgery.note(name, module, "gated behind", f"behind {behind} ({type(norm).__name__}), which cannot be folded")
    surgery.replace(behind, layer)


def _modulated(
    module: nn.Module, name: str, observation: Observation, num_classes: int, options: dict[str, Any], behind: bool
) -> Modulated:
    if behind or not is_plain(module):
        dim, call = channel_dim(module), observation.modules[name][0]
        layer = ModulatedOutput.from_module(
            module,
            call.outputs[0].shape[dim],
            num_classes,
            dim=dim,
            in_features=call.inputs[0].shape[dim],
            **{k: v for k, v in options.items() if k != "gate_bias"},
        )
        layer.example_shape = tuple(call.inputs[0].shape)
        return layer
    if isinstance(module, nn.Conv2d):
        return ModulatedConv2d.from_conv2d(module, num_classes, **options)
    return ModulatedLinear.from_linear(module, num_classes, **options)


def _why(module: nn.Module, new: Modulated, norm: nn.Module | None) -> str:
    if norm is not None:
        return f"with its {type(norm).__name__} folded in"
    if isinstance(new, ModulatedOutput):
        if is_plain(module):
            return "behind the layer, which stays an ordinary module"
        kind = type(module._parameters.get("weight"))
        if kind not in (nn.Parameter, Tensor, type(None)):
            return f"behind the layer: its weight is of type {kind.__name__}, which it reads its own way"
        return f"behind the layer: {type(module).__name__} computes its output its own way"
    return ""


def _drop_projections_not_chosen(surgery: Surgery, chosen: set[str]) -> None:
    """Projections of replaced attention that were refused (filter, skip) become ordinary layers again."""
    for name, module in list(surgery.model.named_modules()):
        if (
            isinstance(module, ModulatedLinear)
            and name not in chosen
            and any(name.startswith(f"{other}.") for other, _ in surgery.originals)
        ):
            surgery.replace(name, plain_linear(module, module.weight, module.bias))
