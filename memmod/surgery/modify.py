"""Decides which layer of a model becomes what, and why, and carries it out on a copy."""

from __future__ import annotations

import contextlib
import fnmatch
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from memmod.errors import ModelError
from memmod.files.strict_json import Origin, check
from memmod.nn import ModulatedConv2d, ModulatedLinear, ModulatedMultiheadAttention, ModulatedOutput
from memmod.nn.modulated import GATES, GRANULARITIES, INITIAL_MEMORY, Modulated
from memmod.surgery.coverage import Coverage
from memmod.surgery.example import Example
from memmod.surgery.fold import foldable_pairs, folded_conv, has_hooks, what_is_left
from memmod.surgery.loose_weights import loose_weights
from memmod.surgery.replace import plain_linear, replace_module
from memmod.surgery.squeeze_excite import squeeze_excite_layers
from memmod.surgery.trace import Observation, rows_are_samples, run_example, same_output, stays_the_same, weight_readers

# Folding moves logits by rounding alone; a pair that folds wrongly moves them by their own size.
FOLD_TOLERANCE = 1e-3

HEAD = "the classifier head"
# Reasons that are the user's choice, or everybody's: no cause for a warning.
CHOSEN_NOT_TO_GATE = (HEAD, "named in skip", "refused by the filter", "has no memory in the file")
QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
NORM = re.compile(r"(Batch|Layer|Group|Instance|RMS|Rms)Norm|^FrozenBatchNorm")
UNSUPPORTED = (
    *(nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.Bilinear, nn.RNNBase, nn.RNNCellBase),
)


@dataclass(frozen=True)
class ModulateConfig:
    """How a model is modulated. Frozen; it travels in the memory file.

    Args:
        granularity: what a memory entry gates: "unit" (default), "input", "unit+input".
        gate: "sigmoid" (default), "identity", or "hard" (inference only).
        gate_bias: gate the bias with its unit, so that a closed unit outputs 0.
        filter: ``(name, module) → bool``; layers for which it is False stay as they are. Not stored: a memory file
            names the layers instead.
        skip: name patterns (as in the shell: ``"stem.*"``) of layers that stay as they are.
        fold: fold BatchNorm into the convolution in front of it and gate the folded unit.
        init: initial value of every memory entry.
        logits: where the logits are in what the model returns: a key, an index or a field ("logits", 1), or a path of
            them ("out.logits"); None: `modulate()` finds them, and stores what it found.

    Raises:
        ValueError: an unknown granularity or gate.
        TypeError: logits is neither a string nor an int.
    """

    granularity: str = "unit"
    gate: str = "sigmoid"
    gate_bias: bool = True
    filter: Callable[[str, nn.Module], bool] | None = None
    skip: tuple[str, ...] = ()
    fold: bool = True
    init: float = INITIAL_MEMORY
    logits: str | int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("granularity", GRANULARITIES), ("gate", GATES)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")
        if self.logits is not None and (isinstance(self.logits, bool) or not isinstance(self.logits, (str, int))):
            raise TypeError(f'logits is {self.logits!r}; it must be a path such as "logits", 1 or "out.logits"')
        object.__setattr__(self, "skip", tuple(self.skip))
        object.__setattr__(self, "logits", None if self.logits is None else str(self.logits))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, without the filter."""
        values = asdict(replace(self, filter=None))
        values.pop("filter")
        return values | {"skip": list(self.skip)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModulateConfig:
        """The config of a `to_dict`.

        Raises:
            ModelError: unknown or missing fields, or values of another type.
            ValueError: an unknown granularity or gate.
        """
        # Not needed to run kernels, which some machines do without it.
        from memmod.files.schemas import StoredConfig, as_dict

        unknown = sorted(values.keys() - set(StoredConfig.__struct_fields__))
        if unknown:
            raise ModelError(f"unknown fields of ModulateConfig: {', '.join(unknown)}; this memmod may be too old")
        origin = Origin("the stored ModulateConfig", ModelError, "store it again")
        return cls(**as_dict(check(values, StoredConfig, origin)))

    @property
    def layer_options(self) -> dict[str, Any]:
        """What every modulated layer is made with."""
        return {"granularity": self.granularity, "gate": self.gate, "gate_bias": self.gate_bias, "init": self.init}


@dataclass(frozen=True)
class Row:
    """What became of one layer: `action` is "gated", "gated behind", "folded", "fused", "replaced" or "skipped"."""

    name: str
    kind: str
    action: str
    reason: str = ""


@dataclass
class Surgery:
    """A modulated copy under way: the model, what was done, and what undoes it."""

    model: nn.Module
    rows: list[Row] = field(default_factory=list)
    originals: list[tuple[str, nn.Module]] = field(default_factory=list)
    attributes: list[tuple[str, str, Any]] = field(default_factory=list)

    def replace(self, name: str, new: nn.Module) -> None:
        """Put `new` in the place of module `name`, wherever the model refers to it, and remember what stood there."""
        old = self.model.get_submodule(name)
        self.originals.append((name, old))
        replace_module(self.model, old, new)

    def undo(self, count: int) -> None:
        """Take back the newest `count` replacements."""
        for _ in range(count):
            name, old = self.originals.pop()
            replace_module(self.model, self.model.get_submodule(name), old)

    def set_attribute(self, name: str, attribute: str, value: Any) -> None:
        """Set an attribute of module `name`, and remember what it was."""
        module = self.model.get_submodule(name)
        self.attributes.append((name, attribute, getattr(module, attribute)))
        setattr(module, attribute, value)

    def note(self, name: str, module: nn.Module, action: str, reason: str = "") -> None:
        """Add a row to the summary."""
        self.rows.append(Row(name, type(module).__name__, action, reason))


def open_attention(surgery: Surgery, num_classes: int, config: ModulateConfig) -> None:
    """Replace attention that reads its projections' weights by equivalents whose projections are modulated modules."""
    options = config.layer_options
    window = _window_attention()
    for name, module in list(surgery.model.named_modules()):
        if isinstance(module, nn.TransformerEncoderLayer) and getattr(module, "activation_relu_or_gelu", 0):
            surgery.set_attribute(name, "activation_relu_or_gelu", 0)
        if type(module) is nn.MultiheadAttention:
            reason = ModulatedMultiheadAttention.refusal(module)
            if reason is not None or has_hooks(module):
                surgery.note(name, module, "skipped", reason or "hooks are registered on it")
                continue
            new = ModulatedMultiheadAttention.from_multihead_attention(module, num_classes, **options)
        elif window is not None and type(module) in window.CLASSES and not has_hooks(module):
            new = window.ModulatedWindowAttention(module, num_classes, **options)
        else:
            continue
        surgery.note(name, module, "replaced", f"by {type(new).__name__}, whose projections are modules")
        surgery.replace(name, new)


def _window_attention():
    if "torchvision.models.swin_transformer" not in sys.modules:
        return None
    from memmod.nn import window_attention

    return window_attention


def fold(surgery: Surgery, observation: Observation, example: Example) -> dict[str, nn.BatchNorm2d]:
    """Fold every conv and BatchNorm pair that folds; returns the folded convs' names with their norms.

    The logits are compared with the unfolded model's; pairs that move them are undone.
    """
    pairs = foldable_pairs(surgery.model, observation)
    expected = observation.output
    for pair in pairs:
        _fold_pair(surgery, *pair)
    if pairs and not _same_output(surgery.model, example, expected):
        surgery.undo(2 * len(pairs))
        pairs = [pair for pair in pairs if _fold_if_it_agrees(surgery, pair, example, expected)]
    norms = {}
    for conv, norm in pairs:
        original = next(module for name, module in reversed(surgery.originals) if name == norm)
        norms[conv] = original
        surgery.note(norm, original, "folded", f"into {conv}")
    return norms


def _fold_pair(surgery: Surgery, conv_name: str, norm_name: str) -> None:
    conv, norm = surgery.model.get_submodule(conv_name), surgery.model.get_submodule(norm_name)
    surgery.replace(conv_name, folded_conv(conv, norm))
    surgery.replace(norm_name, what_is_left(norm))


def _fold_if_it_agrees(surgery: Surgery, pair: tuple[str, str], example: Example, expected: Any) -> bool:
    _fold_pair(surgery, *pair)
    agrees = _same_output(surgery.model, example, expected)
    if not agrees:
        surgery.undo(2)
    return agrees


def _same_output(model: nn.Module, example: Example, expected: Any) -> bool:
    with torch.no_grad():
        return same_output(run_example(model, example.args, example.kwargs), expected, FOLD_TOLERANCE)


def plan_layers(
    surgery: Surgery,
    first: Observation,
    second: Observation,
    heads: dict[str, int],
    norms: dict[str, nn.BatchNorm2d],
    config: ModulateConfig,
    example: Example,
    only: set[str] | None = None,
) -> list[tuple[str, str | None]]:
    """Which layers to gate: pairs (layer name, name of the norm to gate behind or None); the others get their reason.

    `first` is the run of the example, `second` the one with sample 1 changed. `only` names the places of the memories
    (the layer, or the norm it is gated behind) where they are known already.
    """
    modules = dict(surgery.model.named_modules())
    chosen: list[tuple[str, str | None]] = []
    squeezed = squeeze_excite_layers(surgery.model, first)
    if only is not None:
        squeezed = {name for name in squeezed if not {name, _norm_behind(name, modules, first)} & only}
    refusals = _Refusals(modules, first, second, heads, config, example, squeezed)
    coverage = Coverage()
    for name, module in modules.items():
        if isinstance(module, UNSUPPORTED):
            surgery.note(name, module, "skipped", f"{type(module).__name__} is not supported")
            for weight in module.parameters():
                coverage.count(weight, gated=False)
            continue
        if not isinstance(module, (nn.Linear, nn.Conv2d, Modulated)):
            if type(module).__module__.startswith(QUANTISED) and hasattr(module, "weight"):
                surgery.note(name, module, "skipped", "its weight is quantised")
            continue
        reason = refusals.of(name, module)
        if reason is None and not isinstance(module, Modulated) and not _is_plain(module):
            reason = _own_forward_refusal(name, module, first)
        behind = None
        if reason is None and name not in norms and not isinstance(module, Modulated):
            behind = _norm_behind(name, modules, first)
        if reason is None and only is not None and not {name, behind} & only:
            reason = "has no memory in the file"
        if reason not in CHOSEN_NOT_TO_GATE:
            coverage.count(getattr(module, "weight", None), gated=reason is None)
        if reason is not None:
            surgery.note(name, module, "skipped", reason)
            continue
        chosen.append((name, behind))
    for weight in _note_loose_weights(surgery, first, modules, example):
        coverage.count(weight, gated=False)
    coverage.warn(surgery.model)
    return chosen


class _Refusals:
    """Why layers are not gated."""

    def __init__(
        self,
        modules: dict[str, nn.Module],
        first: Observation,
        second: Observation,
        heads: dict[str, int],
        config: ModulateConfig,
        example: Example,
        squeeze_excite: set[str],
    ) -> None:
        self.modules = modules
        self.runs = (first, second)
        self.heads = heads
        self.config = config
        self.batch = example.batch
        self.squeeze_excite = squeeze_excite
        self.reached = first.reached_from(map(id, example.tensors))
        self.readers = _readers(modules, first)

    def of(self, name: str, module: nn.Module) -> str | None:
        """The reason, or None where the layer can be gated."""
        parents = [self.modules[name[:end]] for end in (i for i, c in enumerate(name) if c == ".")]
        if name in self.heads:
            return HEAD
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.config.skip):
            return "named in skip"
        if self.config.filter is not None and not self.config.filter(name, module):
            return "refused by the filter"
        if name in self.squeeze_excite:
            return "inside squeeze-excite"
        calls, again = (run.modules.get(name, []) for run in self.runs)
        if isinstance(module, Modulated):
            if not parents or not isinstance(parents[-1], _replaced_attention()):
                return None if calls else "not called in the example run"
            if isinstance(parents[-1], ModulatedMultiheadAttention):
                # The in-projection may be applied in parts, without a call; its rows are those of the out-projection.
                out_proj = name.rpartition(".")[0] + ".out_proj"
                calls, again = (run.modules.get(out_proj, []) for run in self.runs)
        if name in self.readers:
            return f"its weight is read without calling it ({self.readers[name]})"
        if not calls:
            return "not called in the example run"
        if rows_are_samples(calls, again, self.batch, changed=1):
            return None
        if stays_the_same(calls, again) and any(id(t) in self.reached for call in calls for t in call.inputs):
            return (
                "its output stayed the same when a sample of the example changed (a learned token or closed units in "
                "front of it, weights of zero, an example that is too plain): if it should change, pass another example"
            )
        return "its rows are not samples (or not sample-major)"


def _readers(modules: dict[str, nn.Module], observation: Observation) -> dict[str, str]:
    """Layers whose weight is read without calling them, with the reader.

    A layer or an embedding that shares the weight reads its own; the layer's own output is still gated whole.
    """
    owners: dict[int, list[str]] = {}
    for name, module in modules.items():
        weight = module._parameters.get("weight")
        if weight is not None and isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding, *UNSUPPORTED)):
            owners.setdefault(id(weight), []).append(name)
    readers: dict[str, str] = {}
    for owner, call in weight_readers(observation, owners):
        # Modulated attention applies parts of its packed projection itself.
        if not isinstance(modules[call.module], ModulatedMultiheadAttention):
            readers.setdefault(owner, f"{call.name} in {call.module or 'the model'}")
    return readers


def _replaced_attention() -> tuple[type, ...]:
    window = _window_attention()
    return (ModulatedMultiheadAttention, *((window.ModulatedWindowAttention,) if window is not None else ()))


def _is_plain(module: nn.Module) -> bool:
    """Whether the layer computes what its base class computes, from a weight of its own."""
    if "weight" not in module._parameters or has_hooks(module):
        return False
    if isinstance(module, nn.Conv2d):
        return type(module).forward is nn.Conv2d.forward and type(module)._conv_forward is nn.Conv2d._conv_forward
    return type(module).forward is nn.Linear.forward


def _channel_dim(module: nn.Module) -> int:
    return 1 if isinstance(module, nn.Conv2d) else -1


def _own_forward_refusal(name: str, module: nn.Module, observation: Observation) -> str | None:
    output = observation.modules[name][0].outputs[0]
    units, dim = module.weight.shape[0], _channel_dim(module)
    if output.dim() < 2 or output.shape[dim] != units:
        return f"its output {tuple(output.shape)} has no channel dimension of {units} units"
    return None


def _norm_behind(name: str, modules: dict[str, nn.Module], observation: Observation) -> str | None:
    """The norm that alone consumes this layer's output, or None."""
    calls = observation.modules[name]
    if len(calls) != 1:
        return None
    output = calls[0].outputs[0]
    consumers = observation.consumers(output)
    readers = {call.module for call in consumers}
    if len(readers) != 1 or observation.is_returned(output):
        return None
    norm_name = readers.pop()
    norm = modules[norm_name]
    if not NORM.search(type(norm).__name__) or len(observation.modules[norm_name]) != 1:
        return None
    call = observation.modules[norm_name][0]
    takes_it = any(t is output for t in call.inputs)
    return norm_name if takes_it and len(call.outputs) == 1 and call.outputs[0].shape == output.shape else None


def _note_loose_weights(
    surgery: Surgery, observation: Observation, modules: dict[str, nn.Module], example: Example
) -> list[Tensor]:
    """List weights that act as a layer's but belong to no layer; returns them."""
    kinds = (nn.Linear, nn.Conv2d, nn.MultiheadAttention, *UNSUPPORTED)
    # Folded and replaced layers ran with the weights that they had before.
    layers = [*modules.values(), *(module for _, module in surgery.originals)]
    owned = {id(p) for m in layers if isinstance(m, kinds) for p in m.parameters()}
    found = loose_weights(surgery.model, observation, owned, map(id, example.tensors))
    surgery.rows += [Row(loose.name, loose.kind, "skipped", loose.reason) for loose in found]
    return [loose.weight for loose in found]


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
        new = _modulated(module, name, observation, num_classes, config.layer_options | {"granularity": granularity})
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
        module.weight.shape[0],
        num_classes,
        dim=_channel_dim(module),
        gate=config.gate,
        init=config.init,
    )
    layer.example_shape = tuple(observation.modules[behind][0].inputs[0].shape)
    surgery.note(name, module, "gated behind", f"behind {behind} ({type(norm).__name__}), which cannot be folded")
    surgery.replace(behind, layer)


def _modulated(
    module: nn.Module, name: str, observation: Observation, num_classes: int, options: dict[str, Any]
) -> Modulated:
    if not _is_plain(module):
        linear = isinstance(module, nn.Linear)
        layer = ModulatedOutput.from_module(
            module,
            module.weight.shape[0],
            num_classes,
            dim=_channel_dim(module),
            in_features=module.in_features if linear else module.in_channels,
            **{k: v for k, v in options.items() if k != "gate_bias"},
        )
        layer.example_shape = tuple(observation.modules[name][0].inputs[0].shape)
        return layer
    if isinstance(module, nn.Conv2d):
        return ModulatedConv2d.from_conv2d(module, num_classes, **options)
    return ModulatedLinear.from_linear(module, num_classes, **options)


def _why(module: nn.Module, new: Modulated, norm: nn.Module | None) -> str:
    if norm is not None:
        return f"with its {type(norm).__name__} folded in"
    if isinstance(new, ModulatedOutput):
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


def protect_outputs(surgery: Surgery, gated: list[str], example: Example) -> None:
    """Make in-place neighbours safe: backward reads a layer's output, which the next layer must not have overwritten.

    In-place activations behind a gated layer are switched to new outputs; layers whose output is overwritten by the
    model's own code (``out += identity``) keep the gated part apart.
    """
    layers = {name: surgery.model.get_submodule(name) for name in gated}
    storages: dict[int, Tensor] = {}
    inplace: list[str] = []

    def held(_module, _args, out):
        storages[out.untyped_storage().data_ptr()] = out

    def check(module, args, name):
        if args and isinstance(args[0], Tensor) and args[0].untyped_storage().data_ptr() in storages:
            inplace.append(name)

    with contextlib.ExitStack() as hooks, torch.no_grad():
        for layer in layers.values():
            hooks.callback(layer.register_forward_hook(held).remove)
        for name, module in surgery.model.named_modules():
            if getattr(module, "inplace", False) is True:
                hook = module.register_forward_pre_hook(lambda m, a, name=name: check(m, a, name))
                hooks.callback(hook.remove)
        run_example(surgery.model, example.args, example.kwargs)
    for name in dict.fromkeys(inplace):
        surgery.set_attribute(name, "inplace", False)

    outputs: dict[str, list[tuple[Tensor, int]]] = {name: [] for name in gated}
    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name, layer in layers.items():

            def keep(_module, _args, out, name=name):
                outputs[name].append((out, out._version))

            hooks.callback(layer.register_forward_hook(keep).remove)
        run_example(surgery.model, example.args, example.kwargs)
    for name, kept in outputs.items():
        if any(out._version != version for out, version in kept):
            layers[name].keep = "gated"
