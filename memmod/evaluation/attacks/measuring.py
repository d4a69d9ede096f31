"""What the attacks share: images drawn for them, logits on them, and shares with their resolution."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from memmod.errors import DataError
from memmod.evaluation.accuracy import BATCH, batches
from memmod.evaluation.attacks.attack import Case, Measure
from memmod.evaluation.features import unwrapped
from memmod.surgery.base_copy import detached_copy

if TYPE_CHECKING:
    from memmod.data import Split
    from memmod.model import ModulatedModel
    from memmod.selection import Forget

# Images of a first look.
QUICK_FORGOTTEN = 300
QUICK_RETAINED = 1000


def images(
    case: Case, split: Split, *, forgotten: bool, at_most: int | None = None, at_least: int = 1, attack: str = ""
) -> Tensor:
    """Sorted numbers ``[n]`` of images of the forgotten, or of all other classes, drawn by the case's seed.

    Raises:
        DataError: there are fewer than `at_least`.
    """
    found = (case.is_forgotten(split.labels) == forgotten).nonzero().flatten()
    if len(found) < at_least:
        classes = f"class {', '.join(map(str, case.forget))}" if forgotten else "the other classes"
        kind = "training" if split is case.train else "test"
        raise DataError(
            f"the attack {attack!r} needs at least {at_least} {kind} images of {classes}, but there are {len(found)}: "
            "add images, or leave this attack out"
        )
    return draw(found, at_most, case.seed)


def draw(numbers: Tensor, count: int | None, seed: int) -> Tensor:
    """At most `count` of the numbers ``[n]``, sorted; None: all."""
    if count is None or len(numbers) <= count:
        return numbers
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
    return numbers[order[:count]].sort().values


def tested(case: Case, *, forgotten: bool, attack: str = "") -> Tensor:
    """Numbers of the test images that accuracies are measured on: all, or some in a first look."""
    quick = QUICK_FORGOTTEN if forgotten else QUICK_RETAINED
    return images(case, case.test, forgotten=forgotten, at_most=quick if case.quick else None, attack=attack)


def tested_count(case: Case, *, forgotten: bool) -> int:
    """How many images `tested` gives."""
    count = int((case.is_forgotten(case.test.labels) == forgotten).sum())
    return min(count, QUICK_FORGOTTEN if forgotten else QUICK_RETAINED) if case.quick else count


def example(case: Case, network: nn.Module) -> Tensor:
    """Two images on the network's device."""
    return case.test.batch(torch.arange(2)).to(device_of(network))


def as_file(case: Case, network: nn.Module) -> nn.Module:
    """A copy of the network as one who holds its file has it: without what only wraps it, in eval mode."""
    return detached_copy(unwrapped(network, example(case, network))).eval()


def logits(case: Case, network: nn.Module, split: Split, numbers: Tensor) -> Tensor:
    """fp32 logits ``[n, C]`` on the CPU of the images numbered ``[n]``."""
    with torch.no_grad():
        parts = [case.logits(network, x) for x, _ in batches(split, BATCH, device_of(network), numbers)]
    return torch.cat(parts).float().cpu()


def hits(case: Case, network: nn.Module, split: Split, numbers: Tensor) -> Tensor:
    """bool ``[n]``: which of the images are classified as their label."""
    return logits(case, network, split, numbers).argmax(1) == split.labels[numbers]


def accuracy(case: Case, network: nn.Module, *, forgotten: bool, attack: str = "") -> Measure:
    """Accuracy on the test images of the forgotten classes (Acc_f), or of all others (Acc_r)."""
    return share(hits(case, network, case.test, tested(case, forgotten=forgotten, attack=attack)))


def gated_accuracy(case: Case, wf: ModulatedModel, forget: Forget, attack: str) -> Measure:
    """Accuracy of a modulated model on the forgotten classes' test images, under one selection."""
    with torch.no_grad():
        right = [
            wf.logits(wf(x, forget=forget)).argmax(1).cpu() == labels
            for x, labels in batches(case.test, BATCH, wf.device, tested(case, forgotten=True, attack=attack))
        ]
    return share(torch.cat(right))


def share(right: Tensor) -> Measure:
    """The share of bool ``[n]`` that is true."""
    return Measure(right.double().mean().item(), 1 / len(right))


def device_of(network: nn.Module) -> torch.device:
    """Where a network runs."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))
