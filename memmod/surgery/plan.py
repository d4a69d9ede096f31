"""Decides which layers get a memory, and why the others do not."""

from __future__ import annotations

import fnmatch
import re
from typing import Any

from torch import Tensor, nn

from memmod.nn import ModulatedMultiheadAttention
from memmod.nn.modulated import Modulated
from memmod.surgery.attention import replaced_attention
from memmod.surgery.config import ModulateConfig
from memmod.surgery.coverage import Coverage
from memmod.surgery.example import Example
from memmod.surgery.loose_weights import loose_weights
from memmod.surgery.own_linear import own_linear_layers, weight_and_bias
from memmod.surgery.plain_layers import channel_dim, is_plain
from memmod.surgery.record import Row, Surgery
from memmod.surgery.squeeze_excite import squeeze_excite_layers
from memmod.surgery.trace import Observation, rows_are_samples, stays_the_same, weight_readers

HEAD = "the classifier head"
IDLE = "its output does not reach the logits in the example run"
# Reasons that are the user's choice, or everybody's: no cause for a warning.
CHOSEN_NOT_TO_GATE = (HEAD, IDLE, "named in skip", "refused by the filter", "has no memory in the file")
QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
NORM = re.compile(r"(Batch|Layer|Group|Instance|RMS|Rms)Norm|^FrozenBatchNorm")
UNSUPPORTED = (
    *(nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.Bilinear, nn.RNNBase, nn.RNNCellBase),
)


def plan_layers(
    surgery: Surgery,
    first: Observation,
    second: Observation,
    heads: dict[str, int],
    norms: dict[str, nn.BatchNorm2d],
    config: ModulateConfig,
    example: Example,
    idle: set[str],
    only: set[str] | None = None,
) -> list[tuple[str, str | None]]:
    """Which layers to gate: pairs (layer name, name of the norm to gate behind or None); the others get their reason.

    `first` is the run of the example, `second` the one with sample 1 changed. `idle` names the layers whose output does
    not reach the logits; `only` the places of the memories (the layer, or the norm it is gated behind) where they are
    known already.
    """
    modules = dict(surgery.model.named_modules())
    chosen: list[tuple[str, str | None]] = []
    squeezed = squeeze_excite_layers(surgery.model, first)
    if only is not None:
        squeezed = {name for name in squeezed if not {name, _norm_behind(name, modules, first)} & only}
    own_linear = own_linear_layers(surgery.model, first)
    refusals = _Refusals(modules, first, second, heads, config, example, squeezed, idle)
    coverage = Coverage()
    for name, module in modules.items():
        if isinstance(module, UNSUPPORTED):
            surgery.note(name, module, "skipped", f"{type(module).__name__} is not supported")
            for weight in module.parameters():
                coverage.count(weight, gated=False)
            continue
        if not is_layer(module) and name not in own_linear:
            if type(module).__module__.startswith(QUANTISED) and hasattr(module, "weight"):
                surgery.note(name, module, "skipped", "its weight is quantised")
            continue
        reason = refusals.of(name, module)
        if reason is None and not isinstance(module, Modulated) and not is_plain(module):
            reason = _own_forward_refusal(name, module, first)
        behind = None
        if reason is None and name not in norms and not isinstance(module, Modulated):
            behind = _norm_behind(name, modules, first)
        if reason is None and only is not None and not {name, behind} & only:
            reason = "has no memory in the file"
        if reason not in CHOSEN_NOT_TO_GATE:
            coverage.count(_weight(module), gated=reason is None)
        if reason is not None:
            surgery.note(name, module, "skipped", reason)
            continue
        chosen.append((name, behind))
    for weight in _note_loose_weights(surgery, first, modules, own_linear, example):
        coverage.count(weight, gated=False)
    coverage.warn(surgery.model)
    surgery.gated_weights, surgery.weights = coverage.gated, coverage.total
    return chosen


def is_layer(module: nn.Module) -> bool:
    """Whether it is of a kind that gets a memory."""
    return isinstance(module, (nn.Linear, nn.Conv2d, Modulated))


def _weight(module: nn.Module) -> Any:
    return module.weight if hasattr(module, "weight") else weight_and_bias(module)[0]


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
        idle: set[str],
    ) -> None:
        self.modules = modules
        self.runs = (first, second)
        self.heads = heads
        self.config = config
        self.batch = example.batch
        self.squeeze_excite = squeeze_excite
        self.idle = idle
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
        place = name
        calls, again = (run.modules.get(name, []) for run in self.runs)
        if isinstance(module, Modulated):
            if not parents or not isinstance(parents[-1], replaced_attention()):
                return None if calls else "not called in the example run"
            if isinstance(parents[-1], ModulatedMultiheadAttention):
                # The in-projection may be applied in parts, without a call; its rows are those of the out-projection.
                place = name.rpartition(".")[0] + ".out_proj"
                calls, again = (run.modules.get(place, []) for run in self.runs)
        if name in self.readers:
            return f"its weight is read without calling it ({self.readers[name]})"
        if not calls:
            return "not called in the example run"
        if place in self.idle:
            return IDLE
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


def _own_forward_refusal(name: str, module: nn.Module, observation: Observation) -> str | None:
    output = observation.modules[name][0].outputs[0]
    if not isinstance(module, (nn.Linear, nn.Conv2d)):
        return None
    units, dim = module.weight.shape[0], channel_dim(module)
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
    surgery: Surgery, observation: Observation, modules: dict[str, nn.Module], own_linear: set[str], example: Example
) -> list[Tensor]:
    """List weights that act as a layer's but belong to no layer; returns them."""
    kinds = (nn.Linear, nn.Conv2d, nn.MultiheadAttention, *UNSUPPORTED)
    # Folded and replaced layers ran with the weights that they had before.
    layers = [*modules.values(), *(module for _, module in surgery.originals)]
    layers = [m for m in layers if isinstance(m, kinds)] + [modules[name] for name in own_linear]
    owned = {id(p) for m in layers for p in m.parameters()}
    found = loose_weights(surgery.model, observation, owned, map(id, example.tensors))
    surgery.rows += [Row(loose.name, loose.kind, "skipped", loose.reason) for loose in found]
    return [loose.weight for loose in found]
