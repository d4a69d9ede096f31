"""The process group of a command that a launcher such as torchrun starts several times."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist

from memmod.errors import RunError

# What torchrun, and what else speaks its language, says to each process.
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# A process may read a data set, or save, for long while others wait. One that ends is noticed at once all the same.
PATIENCE = datetime.timedelta(hours=6)


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher started this process as one of a group."""
    return all(name in environment for name in _VARIABLES)


def launched_rank(environment: Mapping[str, str] = os.environ) -> int:
    """The number of this process among those that a launcher started; 0 without one."""
    return int(environment["RANK"]) if is_launched(environment) else 0


def launched_count(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes a launcher started; 1 without one."""
    return int(environment["WORLD_SIZE"]) if is_launched(environment) else 1


def own_device(device: str) -> str:
    """`device`, or of several GPUs on this machine the one that is this process's: "cuda" as "cuda:1", say.

    Raises:
        RunError: there are fewer GPUs than processes on this machine.
    """
    if device != "cuda" or not is_launched():
        return device
    number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= there:
        raise RunError(
            f"this machine has {there} GPUs, but process {number} of it was started: give torchrun --nproc-per-node "
            f"{max(there, 1)}"
        )
    return f"cuda:{number}"


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """A scope with the group of the processes that a launcher started; without one, or in a group, nothing changes.

    Args:
        device: where the networks will be: NCCL serves CUDA, gloo the CPU.
    """
    if not is_launched() or dist.is_initialized():
        yield
        return
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(torch.device(device))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
    yield
    # Not where something failed: the others may wait in a collective for as long as this process is there.
    dist.destroy_process_group()
