"""A small audit: networks that are one linear layer each, and attacks that read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from memmod.data import TensorSplit
from memmod.evaluation.attacks.attack import Attack, Case, Measure, Subject
from memmod.evaluation.audit import Bench
from memmod.training import TrainConfig

CLASSES = 3


def network(value: float) -> nn.Module:
    """A classifier that always finds class 0, with one recognisable number in it."""
    linear = nn.Linear(4, CLASSES)
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
        linear.weight[0, 0] = value
    return nn.Sequential(nn.Flatten(), linear).eval()


def value_of(module: nn.Module) -> float:
    return module[1].weight[0, 0].item()


def split(images: int = 9) -> TensorSplit:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(images, 1, 2, 2, generator=generator)
    return TensorSplit(x, torch.arange(images) % CLASSES, 1.0, (0.0,), (1.0,))


def case(oracles: Sequence[float] = (1.0, 2.0, 3.0), original: float = 20.0, **changes) -> Case:
    return Case(
        forget=(0,),
        num_classes=CLASSES,
        train=split(),
        test=split(),
        training=TrainConfig(),
        original=network(original),
        oracles=tuple(map(network, oracles)),
        **changes,
    )


def bench(suspect: float = 2.0, held_out: float | None = 2.5) -> Bench:
    spared = None if held_out is None else Subject("held-out oracle", network(held_out))
    return Bench(Subject("memmod", network(suspect)), spared, Subject("logit mask", network(19.0)))


def reading(
    name: str = "reading", run: Callable[[Subject, Case], dict[str, Measure]] | None = None, **changes
) -> Attack:
    """An attack whose figure is the number in the network."""
    run = run or (lambda subject, _case: {"number": Measure(value_of(subject.network))})
    return Attack(
        **{
            "name": name,
            "level": "L1",
            "version": 1,
            "knows": {"": "more"},
            "run": run,
            "cost": lambda _case: 10,
            **changes,
        }
    )
