"""Weights rounded to int8 and int4: rounding can undo small changes of weights (Zhang et al., arXiv 2410.16454)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memmod.evaluation.attacks.attack import Attack, Case, Measure, Subject
from memmod.evaluation.attacks.measuring import accuracy, as_file, tested_count

NAME = "quantisation"
BITS = (8, 4)
GRAINS = ("tensor", "channel")


def rounded(weight: Tensor, bits: int, per_channel: bool) -> Tensor:
    """A weight ``[O, ...]`` at the nearest of its 2^bits - 1 symmetric levels, which reach its largest magnitude.

    Args:
        per_channel: levels for each of the O rows.
    """
    levels = 2 ** (bits - 1) - 1
    size = weight.abs()
    largest = size.amax(tuple(range(1, weight.dim())), keepdim=True) if per_channel else size.max()
    step = largest / levels
    return torch.where(step > 0, (weight / step).round() * step, weight)


@torch.no_grad()
def quantise(network: nn.Module, bits: int, per_channel: bool) -> nn.Module:
    """The network, with every weight of two dimensions or more rounded in place."""
    for name, parameter in network.named_parameters():
        if name.endswith("weight") and parameter.dim() >= 2:
            parameter.copy_(rounded(parameter, bits, per_channel))
    return network


def run(subject: Subject, case: Case) -> dict[str, Measure]:
    """Accuracies after rounding the weights, activations left as they are: "acc_forget/int8/tensor" and so on."""
    figures = {}
    for bits in BITS:
        for grain in GRAINS:
            network = quantise(as_file(case, subject.network), bits, grain == "channel")
            for kind, forgotten in (("acc_forget", True), ("acc_retain", False)):
                figures[f"{kind}/int{bits}/{grain}"] = accuracy(case, network, forgotten=forgotten, attack=NAME)
    return figures


QUANTISATION = Attack(
    name=NAME,
    level="L1",
    version=1,
    knows={"": "more", **{f"acc_retain/int{bits}/{grain}": "neither" for bits in BITS for grain in GRAINS}},
    run=run,
    cost=lambda case: 4 * (tested_count(case, forgotten=True) + tested_count(case, forgotten=False)),
    source="round to nearest, symmetric; arXiv 2410.16454",
)
