"""Digits without the 8: a network that knows it, networks that never saw it, and two that were made to forget it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from memmod.data import Dataset, load_data
from memmod.evaluation.attacks import Case, Subject
from memmod.model import ModulatedModel, modulate
from memmod.training import TrainConfig, fit
from memmod.unlearning import Trainer, preset
from memmod.zoo import create_model

FORGET = 8
CLASSES = 10
TRAINING = TrainConfig(epochs=12, batch_size=64, shift=1)
NETWORKS = ("original", "oracle", "held out")


class Masked(nn.Module):
    """The trivial rival: a network whose logit of the class is -∞."""

    def __init__(self, network: nn.Module, c: int = FORGET) -> None:
        super().__init__()
        self.network, self.c = network, c

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x).clone()
        logits[:, self.c] = -torch.inf
        return logits


@dataclass(frozen=True)
class Problem:
    """A case of quick attacks, its original and a held-out oracle as subjects, and what forgot the class."""

    case: Case
    original: Subject
    held_out: Subject
    baked: Subject
    masked: Subject


def make(folder: Path) -> Problem:
    """The problem, its weights kept in the folder."""
    data = load_data("digits")
    file = folder / "attacks.safetensors"
    if not file.exists():
        save_file(_trained(data), file)
    state = load_file(file)
    nets = {name: _network(data, _part(state, name)) for name in NETWORKS}
    wf = modulate(nets["original"], CLASSES, data.test.batch(torch.arange(2)))
    wf.load_memory_state(_part(state, "memories"))
    return problem(data, nets, wf)


def problem(data: Dataset, nets: dict[str, nn.Module], wf: ModulatedModel) -> Problem:
    """The problem of these networks."""
    case = Case((FORGET,), CLASSES, data.train, data.test, TRAINING, nets["original"], (nets["oracle"],), quick=True)
    baked = wf.bake(FORGET, 0.3, "base", data.test.batch(torch.arange(8)))
    return Problem(
        case,
        Subject("original", nets["original"]),
        Subject("held-out oracle", nets["held out"]),
        Subject("baked", baked, wf),
        Subject("logit mask", Masked(nets["original"]).eval()),
    )


def _trained(data: Dataset) -> dict[str, Tensor]:
    kept = (data.train.labels != FORGET).nonzero().flatten()
    without = replace(data, train=data.train.subset(kept))
    nets = {name: _network(data, seed=seed) for seed, name in enumerate(NETWORKS)}
    for seed, name in enumerate(NETWORKS):
        fit(nets[name], data if name == "original" else without, replace(TRAINING, seed=seed))
    wf = modulate(nets["original"], CLASSES, data.test.batch(torch.arange(2)))
    Trainer(wf, data, preset("fast", wf)).fit()
    state = {f"{name}/{key}": t for name, net in nets.items() for key, t in net.state_dict().items()}
    return {**state, **{f"memories/{key}": t for key, t in wf.memory_state().items()}}


def _part(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.partition("/")[2]: t for key, t in state.items() if key.partition("/")[0] == name}


def _network(data: Dataset, state: dict[str, Tensor] | None = None, seed: int = 0) -> nn.Module:
    network = create_model("resnet", CLASSES, data.input_shape, seed=seed)
    if state is not None:
        network.load_state_dict(state)
    return network.eval()


def with_gates(wf: ModulatedModel, value: float, share: float) -> ModulatedModel:
    """A copy whose row of the class holds `value` in the first `share` of each layer's units, and is open elsewhere."""
    changed = copy.deepcopy(wf)
    with torch.no_grad():
        for memory in changed.memory_parameters():
            memory[FORGET] = 30.0
            memory[FORGET, : max(1, int(share * memory.shape[1]))] = value
    return changed
