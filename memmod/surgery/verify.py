"""Proves on an example that every gate of a modulated model acts, on its own sample and on no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memmod.errors import MemmodError, ModelError
from memmod.nn.modulated import Modulated, Modulation
from memmod.outputs import logits_of
from memmod.run_state import RunState
from memmod.surgery.example import Example
from memmod.surgery.trace import run_example

# Layers tried in one run, each on a sample of its own; bounds the memory of a check.
LAYERS_PER_RUN = 8


class _Probe:
    """Stands in for the layers' memories: they act whatever was trained, and each layer has a selection of its own."""

    def __init__(self, layers: dict[Modulated, str]) -> None:
        self.layers = layers
        self.called: dict[str, int] = {}
        self.last = ""
        self.selections: dict[str, Tensor] = {}
        self.everywhere: Tensor | None = None

    def __call__(self, layer: Modulated, _index: Tensor | None) -> Modulation:
        name = self.layers[layer]
        self.called[name] = self.called.get(name, 0) + 1
        self.last = name
        index = self.selections.get(name, self.everywhere)
        return Modulation(_acting(layer.memory), _acting(layer.input_memory), index)


def _acting(memory: Tensor | None) -> Tensor | None:
    """A memory of the same shape with gates that differ from 1."""
    if memory is None:
        return None
    noise = torch.randn(memory.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    return noise.to(memory.device, memory.dtype)


@dataclass(frozen=True)
class _Model:
    """A modulated model, what its layers share, and where its logits are."""

    model: nn.Module
    state: RunState
    logits: str | None
    device: torch.device


@torch.inference_mode(False)
def verify(model: nn.Module, state: RunState, logits: str | None, device: torch.device, example: Example) -> None:
    """Check a modulated model on an example of at least 2 samples.

    Args:
        state: what its layers share.
        logits: where they are in what it returns, as `ModulateConfig.logits`.
        device: of its memories.

    Raises:
        ModelError: a gated layer was not called, changes nothing, or changes another sample; the layer is named.
    """
    wf = _Model(model, state, logits, device)
    layers = {module: name for name, module in model.named_modules() if isinstance(module, Modulated)}
    probe = _Probe(layers)
    with _probing(wf, probe), torch.no_grad():
        _check_all(wf, probe, example)
        _check_each(wf, probe, example)


@contextmanager
def _probing(wf: _Model, probe: _Probe) -> Iterator[None]:
    wf.state.set_probe(probe)
    try:
        yield
    finally:
        wf.state.set_probe(None)


def _check_all(wf: _Model, probe: _Probe, example: Example) -> None:
    three = example.with_samples([0, 1, 0])
    probe.everywhere = _index(wf, [-1, -1, -1])
    nothing = _logits(wf, probe, three)
    missed = [name for name in probe.layers.values() if name not in probe.called]
    if missed:
        raise ModelError(
            f"{_list(missed)} carry a memory but were not called for this input, so their gates do not act: "
            "skip them (ModulateConfig.skip), or verify with an input that reaches them"
        )
    probe.everywhere = _index(wf, [-1, 0, -1])
    selected = _logits(wf, probe, three)
    if not torch.equal(nothing[[0, 2]], selected[[0, 2]]):
        if _base_mixes_samples(wf, probe, three, nothing):
            raise ModelError(
                "the model itself mixes the samples of a batch (dynamic quantisation takes one scale from all of them, "
                "batch statistics do alike), so a selection for one sample changes the others: use one selection for "
                "the whole batch, or take that part out"
            )
        guilty = [name for name in probe.layers.values() if _mixes_samples(wf, probe, three, nothing, name)]
        raise ModelError(
            f"gating one sample changes other samples' logits; the rows of {_list(guilty) or 'some layer'} are not "
            "sample-major (a layer fed in [L, B, E] order, say): feed it batch-first, or skip it (ModulateConfig.skip)"
        )
    if torch.equal(nothing[1], selected[1]):
        raise ModelError(
            "gating a sample in every layer leaves its logits unchanged: no gate reaches the logits" + _plain(example)
        )


def _base_mixes_samples(wf: _Model, probe: _Probe, three: Example, nothing: Tensor) -> bool:
    probe.everywhere = _index(wf, [-1, -1, -1])
    return not torch.equal(_logits(wf, probe, three.with_sample_changed(1))[[0, 2]], nothing[[0, 2]])


def _mixes_samples(wf: _Model, probe: _Probe, three: Example, nothing: Tensor, name: str) -> bool:
    probe.everywhere = _index(wf, [-1, -1, -1])
    probe.selections = {name: _index(wf, [-1, 0, -1])}
    logits = _logits(wf, probe, three)
    probe.selections = {}
    return not torch.equal(logits[[0, 2]], nothing[[0, 2]])


def _check_each(wf: _Model, probe: _Probe, example: Example) -> None:
    """Each layer alone changes the logits: layer j gates sample j only, of a batch of copies of one sample."""
    names = list(probe.layers.values())
    idle = []
    for start in range(0, len(names), LAYERS_PER_RUN):
        group = names[start : start + LAYERS_PER_RUN]
        copies = example.with_samples([0] * len(group))
        probe.everywhere = _index(wf, [-1] * len(group))
        probe.selections = {}
        nothing = _logits(wf, probe, copies)
        probe.selections = {
            name: _index(wf, [0 if sample == own else -1 for sample in range(len(group))])
            for own, name in enumerate(group)
        }
        alone = _logits(wf, probe, copies)
        idle += [name for own, name in enumerate(group) if torch.equal(nothing[own], alone[own])]
    probe.selections = {}
    if idle:
        raise ModelError(
            f"{_list(idle)} are gated, but their gates do not change the logits (a zero-initialised norm, layer scale "
            "or head behind them, or an output that is not used): train the base first, or skip them "
            "(ModulateConfig.skip)" + _plain(example)
        )


def _plain(example: Example) -> str:
    return "; this example is constant: verify with one that is not" if example.is_constant else ""


def _logits(wf: _Model, probe: _Probe, example: Example) -> Tensor:
    try:
        logits = logits_of(run_example(wf.model, example.args, example.kwargs), wf.logits)
    except MemmodError as error:
        raise ModelError(f"the model fails with its gates at work, last in layer {probe.last!r}: {error}") from error
    if not torch.isfinite(logits).all():
        raise ModelError("the example's logits are not finite, so nothing can be verified: pass another example_input")
    return logits


def _index(wf: _Model, classes: list[int]) -> Tensor:
    return torch.tensor(classes, dtype=torch.int64, device=wf.device)


def _list(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
