"""Proves on an example that every gate of a modulated model acts, on its own sample and on no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from memmod.errors import MemmodError, ModelError
from memmod.nn.modulated import Modulated, Modulation
from memmod.run_state import RunState
from memmod.surgery.example import Example
from memmod.surgery.influence import influential
from memmod.surgery.trace import run_example

# Sets of layers tried in one run, each on a sample of its own; bounds the memory of a check.
SETS_PER_RUN = 8
# Layers that a message names.
NAMED = 8


class Probe:
    """Stands in for the layers' memories: they act whatever was trained, and each layer has a selection of its own.

    Its memories have one row, ``[1, K]``, so an index holds 0 (gated) or -1.
    """

    def __init__(self, layers: dict[Modulated, str]) -> None:
        self.layers = layers
        self.called: dict[str, int] = {}
        self.last = ""
        self.selections: dict[str, Tensor] = {}
        self.everywhere: Tensor | None = None
        self.memories = {
            name: [_acting(memory) for memory in (layer.memory, layer.input_memory)] for layer, name in layers.items()
        }

    def __call__(self, layer: Modulated, _index: Tensor | None) -> Modulation:
        name = self.layers[layer]
        self.called[name] = self.called.get(name, 0) + 1
        self.last = name
        return Modulation(*self.memories[name], self.selections.get(name, self.everywhere))


def _acting(memory: Tensor | None) -> Tensor | None:
    """One row of a memory's width, with gates that differ from 1."""
    if memory is None:
        return None
    noise = torch.randn((1, memory.shape[1]), generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    # A hard gate of positive entries alone would be open.
    noise[:, :1] = -noise[:, :1].abs()
    return noise.to(memory.device, memory.dtype)


@dataclass
class Checked:
    """A modulated model that is checked, and the runs of it.

    Args:
        state: what its layers share.
        output_of: the tensor ``[B, ...]`` that gates must change, in what the model returned.
        device: of its memories.
    """

    model: nn.Module
    state: RunState
    output_of: Callable[[object], Tensor]
    device: torch.device
    probe: Probe = field(init=False)

    def __post_init__(self) -> None:
        layers = {module: name for name, module in self.model.named_modules() if isinstance(module, Modulated)}
        self.probe = Probe(layers)

    def output(self, example: Example, everywhere: list[int], selections: dict[str, list[int]] | None = None) -> Tensor:
        """The output ``[B, ...]`` for one selection in every layer (0 gated, -1 not), and those of layers by name.

        Raises:
            ModelError: the model fails, or its output is not finite.
        """
        self.probe.everywhere = self._index(everywhere)
        self.probe.selections = {name: self._index(chosen) for name, chosen in (selections or {}).items()}
        try:
            output = self.output_of(run_example(self.model, example.args, example.kwargs))
        except MemmodError as error:
            raise ModelError(
                f"the model fails with its gates at work, last in layer {self.probe.last!r}: {error}"
            ) from error
        if not torch.isfinite(output).all():
            raise ModelError(
                "the example's logits are not finite, so nothing can be verified: pass another example_input"
            )
        return output

    def _index(self, classes: list[int]) -> Tensor:
        return torch.tensor(classes, dtype=torch.int64, device=self.device)


@torch.inference_mode(False)
def verify(
    model: nn.Module,
    state: RunState,
    output_of: Callable[[object], Tensor],
    device: torch.device,
    example: Example,
) -> None:
    """Check a modulated model on an example of at least 2 samples.

    Linear in the model's depth: one backward pass tells of every layer at once whether its gate reaches the output.
    Layers of which it cannot tell (hard gates, code that autograd does not follow) are tried in forward passes, sets of
    them on a sample each, halved where a set changes something.

    Args:
        state: what its layers share.
        output_of: the tensor ``[B, ...]`` that gates must change (the logits), in what the model returned.
        device: of its memories.

    Raises:
        ModelError: a gated layer was not called, changes nothing, or changes another sample; the layer is named.
    """
    wf = Checked(model, state, output_of, device)
    with _probing(wf), torch.no_grad():
        _check_all(wf, example)
        _check_each(wf, example)


@contextmanager
def _probing(wf: Checked) -> Iterator[None]:
    wf.state.set_probe(wf.probe)
    try:
        yield
    finally:
        wf.state.set_probe(None)


def _check_all(wf: Checked, example: Example) -> None:
    three = example.with_samples([0, 1, 0])
    nothing = wf.output(three, [-1, -1, -1])
    missed = [name for name in wf.probe.layers.values() if name not in wf.probe.called]
    if missed:
        raise ModelError(
            f"{_list(missed)} carry a memory but were not called for this input, so their gates do not act: "
            "skip them (ModulateConfig.skip), or verify with an input that reaches them"
        )
    selected = wf.output(three, [-1, 0, -1])
    if not torch.equal(nothing[[0, 2]], selected[[0, 2]]):
        if _base_mixes_samples(wf, three, nothing):
            raise ModelError(
                "the model itself mixes the samples of a batch (dynamic quantisation takes one scale from all of them, "
                "batch statistics do alike), so a selection for one sample changes the others: use one selection for "
                "the whole batch, or take that part out"
            )
        raise ModelError(
            f"gating one sample changes other samples' logits; the rows of {_mixing_layers(wf, three, nothing)} are "
            "not sample-major (a layer fed in [L, B, E] order, say): feed it batch-first, or skip it "
            "(ModulateConfig.skip)"
        )
    if torch.equal(nothing[1], selected[1]):
        raise ModelError(
            "gating a sample in every layer leaves its logits unchanged: no gate reaches the logits" + _plain(example)
        )


def _base_mixes_samples(wf: Checked, three: Example, nothing: Tensor) -> bool:
    return not torch.equal(wf.output(three.with_sample_changed(1), [-1, -1, -1])[[0, 2]], nothing[[0, 2]])


def _mixing_layers(wf: Checked, three: Example, nothing: Tensor) -> str:
    """The layers that change other samples, found by halving; a few of many."""
    todo, guilty = [list(wf.probe.layers.values())], []
    while todo and len(guilty) < NAMED:
        names = todo.pop()
        output = wf.output(three, [-1, -1, -1], dict.fromkeys(names, [-1, 0, -1]))
        if torch.equal(output[[0, 2]], nothing[[0, 2]]):
            continue
        if len(names) == 1:
            guilty += names
        else:
            # The front half comes off the stack first.
            todo += [names[len(names) // 2 :], names[: len(names) // 2]]
    return (_list(guilty) or "some layer") + (" and perhaps others" if todo else "")


def _check_each(wf: Checked, example: Example) -> None:
    """Each layer alone changes the output."""
    acting = influential(wf, example)
    idle = _idle(wf, example, [name for name in wf.probe.layers.values() if name not in acting])
    if idle:
        raise ModelError(
            f"{_list(idle)} are gated, but their gates do not change the logits (a zero-initialised norm, layer scale "
            "or head behind them, or an output that is not used): train the base first, or skip them "
            "(ModulateConfig.skip)" + _plain(example)
        )


def _idle(wf: Checked, example: Example, names: list[str]) -> list[str]:
    """Those of the layers whose gates change nothing: sets of them together, each set on a sample, halved until none
    is left that changes something and holds more than one layer."""
    size = -(-len(names) // SETS_PER_RUN)
    sets = [names[start : start + size] for start in range(0, len(names), size or 1)]
    idle: list[list[str]] = []
    while sets:
        now, sets = sets[:SETS_PER_RUN], sets[SETS_PER_RUN:]
        for layers, changes in zip(now, _change_anything(wf, example, now), strict=True):
            if not changes:
                idle.append(layers)
            elif len(layers) > 1:
                sets += [layers[: len(layers) // 2], layers[len(layers) // 2 :]]
    found = sorted((name for layers in idle for name in layers), key=names.index)
    # One layer of a set may hide what another changes, so those that are named are tried alone.
    together = {name for layers in idle if len(layers) > 1 for name in layers}
    alone = [[name] for name in found[:NAMED] if name in together]
    if any(_change_anything(wf, example, alone)):
        every = [[name] for name in found if name in together]
        changed = [
            change
            for start in range(0, len(every), SETS_PER_RUN)
            for change in _change_anything(wf, example, every[start : start + SETS_PER_RUN])
        ]
        acting = {name for (name,), change in zip(every, changed, strict=True) if change}
        found = [name for name in found if name not in acting]
    return found


def _change_anything(wf: Checked, example: Example, sets: list[list[str]]) -> list[bool]:
    """Whether each set of layers changes the output: set j gates sample j alone, of a batch of copies of one sample."""
    if not sets:
        return []
    copies = example.with_samples([0] * len(sets))
    nobody = [-1] * len(sets)
    nothing = wf.output(copies, nobody)
    own = [[0 if sample == j else -1 for sample in range(len(sets))] for j in range(len(sets))]
    output = wf.output(copies, nobody, {name: own[j] for j, names in enumerate(sets) for name in names})
    return [not torch.equal(nothing[j], output[j]) for j in range(len(sets))]


def _plain(example: Example) -> str:
    return "; this example is constant: verify with one that is not" if example.is_constant else ""


def _list(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
