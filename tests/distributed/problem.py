"""A round on several processes beside one on one process, and what each of its steps gives."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from memmod.data import TensorSplit
from memmod.distributed.sharded import whole
from memmod.distributed.sharding import shard
from memmod.model import ModulatedModel
from memmod.unlearning import Trainer, UnlearnConfig, UnlearnResult
from tests.unlearning.problem import dataset, modulated, quick

# A step of each kind: every sample with a selection of its own; one class for all, on the batch's statistics.
STEPS = {"mixed": 0.0, "one class": 1.0}
# Rows that three processes cannot share alike.
BATCH = 14
# Steps of a whole round.
LENGTH = 22


class Double(TensorSplit):
    """Images in fp64."""

    def batch(self, indices: Tensor) -> Tensor:
        return super().batch(indices).double()


def in_fp64(split: TensorSplit) -> Double:
    return Double(split.images, split.labels, 1.0, (0.0,), (1.0,))


def gradients(step: str, objective: str, sharded: bool = False, exact: bool = False) -> dict[str, Tensor]:
    """The gradient of each memory in the first step of a round."""
    wf, data = modulated(), dataset()
    with torch.no_grad():
        for number, memory in enumerate(wf.memory_parameters()):
            memory.copy_(torch.randn(memory.shape, generator=torch.Generator().manual_seed(number)))
    if sharded:
        shard(wf, least=1)
    options = {"statistics_fraction": STEPS[step], "objective": objective, "margin": 0.5, "expansion": 2}
    config = quick(steps=1, batch_size=BATCH, clip=1e9, **options)
    validation = data.train.subset(torch.arange(0, len(data.train), 7))
    if exact:
        wf, validation = wf.double(), in_fp64(validation)
        data = replace(data, train=in_fp64(data.train))
    Trainer(wf, data, config, validation=validation).fit()
    return {name: whole(memory.grad).clone() for name, memory in wf.named_memories()}


def whole_round(
    folder: str | None = None, sharded: bool = False, resume: bool = False, **changes
) -> tuple[ModulatedModel, UnlearnResult]:
    """A round with a checkpoint every 4 steps."""
    wf = modulated()
    if sharded:
        shard(wf, least=1)
    config: UnlearnConfig = quick(**{"steps": LENGTH, **changes})
    return wf, Trainer(wf, dataset(), config, folder, checkpoint_every=4).fit(resume)
