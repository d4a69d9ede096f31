"""One of the processes that check what they do together; a failed assertion ends all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from memmod import ModulatedModel
from memmod.data import TensorSplit
from memmod.distributed import processes
from memmod.distributed.launch import process_group
from memmod.distributed.statistics import GlobalBatchStatistics
from memmod.errors import DataError, MemmodError, ModelError, RunError
from memmod.unlearning import Trainer
from tests.helpers import assert_no_worse
from tests.unlearning.problem import dataset, modulated, quick

RANK = 0


def refused(kind: type[MemmodError], words: str, action: Callable[[], Any], everywhere: bool = True) -> None:
    """`action` fails on every process, with the same words."""
    try:
        action()
    except MemmodError as error:
        assert type(error) is kind and words in str(error), repr(error)
        assert error.everywhere is everywhere
    else:
        raise AssertionError(f"nothing was raised that says {words!r}")


def shares() -> None:
    for rows in (1, 2, 5, 8):
        every = processes.by_shares(rows, lambda own: 10 * own)
        assert torch.equal(every, 10 * torch.arange(rows))
        assert processes.by_shares(rows, lambda own: own % 2 == 0).tolist() == [row % 2 == 0 for row in range(rows)]
    own = torch.full((len(processes.share(5)), 2), float(RANK), requires_grad=True)
    every = processes.gather_rows(own, 5)
    assert every[:, 0].tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]
    every.sum().backward()
    assert torch.equal(own.grad, torch.ones_like(own))


def errors() -> None:
    def fail_here(rank: int, error: Exception) -> Callable[[], int]:
        def action() -> int:
            if RANK == rank:
                raise error
            return RANK

        return action

    assert processes.agreed(lambda: RANK) == RANK and processes.by_first(lambda: RANK + 5) == 5
    refused(DataError, "on process 1 of 2: no cow", lambda: processes.agreed(fail_here(1, DataError("no cow"))))
    refused(DataError, "no cow", lambda: processes.by_first(fail_here(0, DataError("no cow"))))
    full = fail_here(0, OSError("the disk is full"))
    if RANK:
        refused(RunError, "the disk is full", lambda: processes.by_first(full))
    else:
        with pytest.raises(OSError, match="the disk is full"):
            processes.by_first(full)

    def both() -> None:
        raise DataError("nothing there")

    refused(DataError, "nothing there", lambda: processes.agreed(both))
    refused(
        RunError,
        "do not work on one round: lr is 0 on process 0, but 1 on process 1",
        lambda: processes.check_same("round", {"lr": RANK, "steps": 3}),
    )


def statistics() -> None:
    """BatchNorm over all rows, of which the processes have 3 and 2: values and gradients as good as PyTorch's own."""
    for dims, build in ((4, nn.BatchNorm2d), (2, nn.BatchNorm1d)):
        generator = torch.Generator().manual_seed(dims)
        x = 100 + torch.randn(5, 6, *[7] * (dims - 2), generator=generator)
        dy = torch.randn(x.shape, generator=generator)
        norm = build(6)
        with torch.no_grad():
            norm.weight.copy_(torch.randn(6, generator=generator))
            norm.bias.copy_(torch.randn(6, generator=generator))
        norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None

        def run(
            norm: nn.Module, x: torch.Tensor, dy: torch.Tensor, rows: torch.Tensor, scope: bool
        ) -> dict[str, torch.Tensor]:
            own = x[rows].clone().requires_grad_()
            norm.zero_grad(set_to_none=True)
            if scope:
                with GlobalBatchStatistics():
                    y = norm(own)
            else:
                y = norm(own)
            y.backward(dy[rows])
            return {"y": y.detach(), "dx": own.grad}

        every = torch.arange(5)
        plain = run(norm, x, dy, every, False)
        exact = run(norm.double(), x.double(), dy.double(), every, False)
        found = run(norm.float(), x, dy, processes.share(5), True)
        assert_no_worse({name: processes.gather_rows(value, 5) for name, value in found.items()}, plain, exact)
        half = norm.bfloat16()
        with GlobalBatchStatistics():
            assert half(x[processes.share(5)].bfloat16()).dtype is torch.bfloat16
    with GlobalBatchStatistics():
        evaluated = nn.BatchNorm2d(6).eval()
        y = torch.randn(2, 6, 3, 3)
        torch.testing.assert_close(evaluated(y), y, rtol=1e-4, atol=1e-4)
        refused(ModelError, "running statistics", lambda: nn.BatchNorm2d(6)(torch.randn(2, 6, 3, 3)), everywhere=False)


def rounds() -> None:
    def trainer(wf: ModulatedModel | None = None, **changes: Any) -> Trainer:
        return Trainer(wf or modulated(), dataset(), quick(**changes))

    refused(RunError, "one round: seed is 0 on process 0, but 1 on process 1", trainer(seed=RANK).fit)
    refused(RunError, "one round: base_sha256 is", trainer(modulated(norm=RANK == 0)).fit)
    refused(RunError, "batch_size is 3, which 2 processes share: raise it to 4", trainer(batch_size=3).fit, False)
    # Memories that differ are those of process 0 from the start.
    wf = modulated()
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.add_(RANK)
    told = []
    Trainer(wf, dataset(), quick(steps=2), progress=told.append).fit()
    sums = torch.stack([memory.sum() for memory in wf.memory_parameters()]).detach()
    first = sums.clone()
    dist.broadcast(first, 0)
    assert torch.equal(sums, first)
    assert bool(told) is (RANK == 0)


class Fails(TensorSplit):
    """Images that cannot be read on process 1, once training has begun."""

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        if RANK == 1 and torch.is_grad_enabled():
            raise DataError("the image cow.png is damaged")
        return super().batch(indices)


def one_fails_alone() -> None:
    data = dataset()
    train = Fails(data.train.images, data.train.labels, 1.0, (0.0,), (1.0,))
    trainer = Trainer(modulated(), replace(data, train=train), quick(), validation=data.test)
    if RANK == 1:
        trainer.fit()
    with pytest.raises(RunError, match="process 0 of 2 waited for another one"):
        trainer.fit()


def threads_of_gloo() -> int:
    return sum(name.read_text().startswith("pt_gloo") for name in Path("/proc/self/task").glob("*/comm"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with contextlib.suppress(DataError), process_group("cpu"):
        RANK = dist.get_rank()
        for check in (shares, errors, statistics, rounds, one_fails_alone):
            check()
            assert threads_of_gloo()
        assert RANK == 0
    # A group that something still holds would abort the process at its end, once in a few times.
    assert not threads_of_gloo()
