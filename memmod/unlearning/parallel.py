"""How the processes of a group share a round: each runs its rows of every batch, all come to the same memories."""

from __future__ import annotations

import gc
import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from memmod.distributed import processes
from memmod.distributed.sharded import any_sharded, whole
from memmod.distributed.statistics import GlobalBatchStatistics
from memmod.errors import RunError
from memmod.unlearning.objectives import Losses

if TYPE_CHECKING:
    from memmod.model import ModulatedModel
    from memmod.unlearning.presets import UnlearnConfig

# Of each step's images, so that a process has a variance of its own.
LEAST_IMAGES = 2


class Parallel:
    """One round on the processes of the default group; on one process where there is none.

    Every process draws the same batch and runs its share of the rows. The logits of all rows meet before the loss, so
    that an objective sees the batch that one process would have seen; each process's gradients are those of its rows,
    and are added up: by `DistributedDataParallel`, or, where the memories are split over the processes, by FSDP.

    Args:
        wf: with process 0's memories from here on.
        config: its batch is the group's.

    Raises:
        RunError: fewer than 2 images of a batch for a process.
    """

    def __init__(self, wf: ModulatedModel, config: UnlearnConfig) -> None:
        self.count, self.is_first = processes.count(), processes.rank() == 0
        memories = list(wf.memory_parameters())
        self.sharded = any_sharded(memories)
        self.wf = wf
        self.model: nn.Module = wf
        if config.batch_size // self.count < LEAST_IMAGES:
            raise RunError(
                f"batch_size is {config.batch_size}, which {self.count} processes share: raise it to "
                f"{LEAST_IMAGES * self.count}, or start fewer processes"
            )
        if self.count > 1 and not self.sharded:
            processes.send_from_first([memory.detach() for memory in memories])
            ddp = nn.parallel.DistributedDataParallel
            # By its name of torch 2.14 on, or before.
            new = "forward_sync_buffers"
            buffers = new if new in inspect.signature(ddp).parameters else "broadcast_buffers"
            # The base is frozen and known to be the same everywhere: only gradients are sent.
            self.model = ddp(wf, init_sync=False, gradient_as_bucket_view=True, **{buffers: False})
        if self.sharded:
            # Else FSDP leaves the outermost block whole after a forward: its memories are not those of the optimiser.
            wf.set_reshard_after_forward(True)
            wf.reshard()

    def close(self) -> None:
        """Let go of the group: one that outlives destroy_process_group() can abort the process at its end (gloo)."""
        if self.model is not self.wf:
            self.model = self.wf
            # DistributedDataParallel is in cycles.
            gc.collect()

    def statistics(self) -> AbstractContextManager[Any]:
        """A scope in which a batch's statistics are those of all processes' rows."""
        return GlobalBatchStatistics() if self.count > 1 else nullcontext()

    def backward(self, losses: Losses, lambdas: tuple[float, float, float]) -> None:
        """Give every memory its gradient of the weighted sum over the rows of all processes."""
        if self.count == 1 and not self.sharded:
            losses.total.backward()
            return
        # DDP and FSDP take the mean over processes of what are parts of one sum. The gates' penalty is the same on all.
        data = self.count * (lambdas[0] * losses.retain + lambdas[1] * losses.forget)
        penalty = lambdas[2] * losses.gates
        if not self.sharded:
            (data + penalty).backward()
            return
        data.backward()
        # Of the parts themselves, which FSDP's mean does not touch; and only once its gradients are there.
        penalty.backward()

    def clip(self, memories: list[Tensor], largest: float) -> Tensor:
        """The norm of all gradients together, which is `largest` at most afterwards."""
        return whole(nn.utils.clip_grad_norm_([m for m in memories if m.grad is not None], largest))


def snapshot(wf: ModulatedModel) -> dict[str, Tensor]:
    """A copy of every memory by name, in this process's parts where they are split."""
    return {name: memory.detach().clone() for name, memory in wf.named_memories()}


def put_back(wf: ModulatedModel, memories: dict[str, Tensor]) -> None:
    """Set every memory from a `snapshot`."""
    with torch.no_grad():
        for name, memory in wf.named_memories():
            memory.copy_(memories[name])
