"""Statistics undone: BatchNorm estimated anew on the baked network, and every unit scaled back to its old spread.

memmod's own: a gate before a normalisation is undone by it, so whoever has images can undo it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from memmod.evaluation.accuracy import BATCH, batches
from memmod.evaluation.attacks.attack import Attack, Case, Measure, Subject
from memmod.evaluation.attacks.measuring import accuracy, as_file, device_of, draw, example, images, tested_count
from memmod.evaluation.features import head_name, unwrapped
from memmod.surgery.heads import HEAD_LAYERS
from memmod.surgery.trace import observe

ESTIMATED_ON, QUICK_ESTIMATED_ON = 10_000, 1_000
SCALED_ON, QUICK_SCALED_ON = 500, 200
# An attacker's own: with the usual 1e-5 units that a gate made small would stay small.
EPS = 1e-10
# A unit with less of its spread than this is closed for good: scaling it up would amplify rounding.
CLOSED = 1e-5


def _norms(network: nn.Module) -> dict[str, nn.Module]:
    """The BatchNorm modules with running statistics, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def _original(case: Case) -> nn.Module:
    return unwrapped(case.original, example(case, case.original))


def reestimated(network: nn.Module, like: nn.Module, xs: Iterator[Tensor]) -> nn.Module:
    """The network, in place, with `like`'s BatchNorms and statistics estimated on batches of images.

    The norms' weights and biases are `like`'s; they standardise by the mean of the batches' statistics, with an eps of
    1e-10.

    Args:
        like: of the network's architecture, or the network itself.
        xs: batches ``[B, ...]`` on the network's device, B ≥ 2.
    """
    fresh = []
    for name, norm in _norms(like).items():
        new = copy.deepcopy(norm).to(device_of(network))
        new.eps, new.momentum = EPS, None
        new.reset_running_stats()
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, new)
        fresh.append(new)
    network.eval()
    for norm in fresh:
        # Not what the norm carries along, such as dropout.
        norm.training = True
    with torch.no_grad():
        for x in xs:
            network(x)
    return network.eval()


def run_reestimation(subject: Subject, case: Case) -> dict[str, Measure]:
    """Acc_f after BatchNorm is estimated anew on training images: "acc_forget/retained", "acc_forget/all".

    Norms keep the weights and biases that they have in the file.
    """
    return _reestimation(subject, case, lambda network: network)


def run_base_norms(subject: Subject, case: Case) -> dict[str, Measure]:
    """The same with the weights and biases of the original's norms, which undo every gate that is not 0."""
    original = _original(case)
    return _reestimation(subject, case, lambda _network: original)


def _reestimation(subject: Subject, case: Case, norms_of: Callable[[nn.Module], nn.Module]) -> dict[str, Measure]:
    figures = {}
    most = QUICK_ESTIMATED_ON if case.quick else ESTIMATED_ON
    retained = images(case, case.train, forgotten=False, at_least=2, attack="batchnorm")
    for name, numbers in (("retained", retained), ("all", torch.arange(len(case.train)))):
        network = as_file(case, subject.network)
        chosen = draw(numbers, most, case.seed)
        order = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(case.seed))]
        xs = (x for x, _ in batches(case.train, BATCH, device_of(network), order))
        figures[f"acc_forget/{name}"] = accuracy(
            case, reestimated(network, norms_of(network), xs), forgotten=True, attack="batchnorm"
        )
    return figures


def _without_norms(subject: Subject, case: Case) -> str | None:
    """Of the network as a file; a wrapper's are those of the network inside."""
    return None if _norms(subject.network) and _norms(case.original) else "the network has no BatchNorm"


def units(original: nn.Module, x: Tensor) -> dict[str, int]:
    """Names of the modules whose outputs are units, with their dimension: norms, and layers no norm follows.

    The head is not among them.

    Args:
        x: images ``[B, ...]``, B ≥ 2.
    """
    observation = observe(original, (x,), {})
    modules = dict(original.named_modules())
    head, norms = head_name(original, x), _norms(original)
    found = {}
    for name, calls in observation.modules.items():
        module = modules[name]
        if name in norms:
            found[name] = 1
        elif isinstance(module, HEAD_LAYERS) and name != head and len(calls) == 1:
            readers = {call.module for call in observation.consumers(calls[0].outputs[0])}
            if not readers & norms.keys():
                found[name] = -1 if isinstance(module, nn.Linear) else 1
    return found


@contextmanager
def _on_outputs(network: nn.Module, hook_of: dict[str, Callable[..., Any]]) -> Iterator[None]:
    modules = dict(network.named_modules())
    handles = [modules[name].register_forward_hook(hook) for name, hook in hook_of.items() if name in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def spreads(network: nn.Module, places: dict[str, int], x: Tensor) -> dict[str, Tensor]:
    """Standard deviation ``[K]`` of every unit's output over images x ``[B, ...]``, by place."""
    found: dict[str, Tensor] = {}

    def keep(name: str, dim: int):
        return lambda _module, _args, y: found.__setitem__(name, _spread(y, dim))

    with torch.no_grad(), _on_outputs(network, {name: keep(name, dim) for name, dim in places.items()}):
        network(x)
    return found


def _spread(y: Tensor, dim: int) -> Tensor:
    return y.movedim(dim, 0).flatten(1).double().std(1)


def factors(
    network: nn.Module, places: dict[str, int], x: Tensor, target: dict[str, Tensor] | None
) -> dict[str, Tensor]:
    """What each unit's output ``[K]`` is multiplied by to have its target's spread, layers in front scaled already.

    Args:
        target: spreads ``[K]`` by place; None: 1 everywhere.
    """
    found: dict[str, Tensor] = {}

    def scale(name: str, dim: int):
        def hook(_module: nn.Module, _args: tuple[Any, ...], y: Tensor) -> Tensor:
            spread = _spread(y, dim)
            wanted = torch.ones_like(spread) if target is None else target[name].to(spread.device)
            usable = (spread > CLOSED * wanted) & (wanted > 0)
            found[name] = torch.where(usable, wanted / spread.clamp_min(torch.finfo(spread.dtype).tiny), 1.0)
            return _times(y, found[name], dim)

        return hook

    with torch.no_grad(), _on_outputs(network, {name: scale(name, dim) for name, dim in places.items()}):
        network(x)
    return found


def _times(y: Tensor, factor: Tensor, dim: int) -> Tensor:
    shape = [1] * y.dim()
    shape[dim] = -1
    return y * factor.to(y.dtype).view(shape)


def run_rescaling(subject: Subject, case: Case) -> dict[str, Measure]:
    """Acc_f, "acc_forget", after every unit is scaled to the spread that it has in the original.

    Spreads are standard deviations over unlabelled training images; units that are closed for good stay closed.
    """
    network, original = as_file(case, subject.network), _original(case)
    most = QUICK_SCALED_ON if case.quick else SCALED_ON
    x = case.train.batch(draw(torch.arange(len(case.train)), most, case.seed)).to(device_of(network))
    places = units(original, example(case, original))
    found = factors(network, places, x, spreads(original, places, x.to(device_of(original))))

    def scale(name: str, dim: int):
        return lambda _module, _args, y: _times(y, found[name], dim)

    with _on_outputs(network, {name: scale(name, places[name]) for name in found}):
        return {"acc_forget": accuracy(case, network, forgotten=True, attack="rescaling")}


def _estimation_cost(case: Case) -> int:
    most = QUICK_ESTIMATED_ON if case.quick else ESTIMATED_ON
    return 2 * (min(most, len(case.train)) + tested_count(case, forgotten=True))


BATCHNORM = Attack(
    name="batchnorm",
    level="L1",
    version=2,
    knows={"": "more"},
    run=run_reestimation,
    cost=_estimation_cost,
    applies=_without_norms,
    source="Ioffe and Szegedy, arXiv 1502.03167, algorithm 2",
)
BASE_NORMS = Attack(
    name="batchnorm of the base",
    level="L2",
    version=1,
    knows={"": "more"},
    run=run_base_norms,
    cost=_estimation_cost,
    applies=_without_norms,
    source="the same: BN(s·z) = BN(z) for every gate s > 0",
)
RESCALING = Attack(
    name="rescaling",
    level="L1",
    version=1,
    knows={"": "more"},
    run=run_rescaling,
    cost=lambda case: 2 * (QUICK_SCALED_ON if case.quick else SCALED_ON) + tested_count(case, forgotten=True),
    source="the same, where there is no BatchNorm: std(s·z) = s·std(z)",
)
