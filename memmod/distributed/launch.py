"""The process group of a command that a launcher such as torchrun starts several times."""

from __future__ import annotations

import datetime
import gc
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from memmod.distributed.launched import is_launched
from memmod.errors import RunError

# A process may read a data set, or save, for long while others wait. One that ends is noticed at once all the same.
PATIENCE = datetime.timedelta(hours=6)
# A thread of gloo needs a moment of a processor after the last collective, and nothing tells when it has had it.
SETTLING_SECONDS = 0.2


def own_device(device: str) -> str:
    """`device`, or of several GPUs on this machine the one that is this process's: "cuda" as "cuda:1", say.

    Raises:
        RunError: there are fewer GPUs than processes on this machine.
    """
    if device != "cuda" or not is_launched():
        return device
    number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if there and number >= there:
        raise RunError(
            f"this machine has {there} GPUs, but process {number} of it was started: give torchrun --nproc-per-node "
            f"{there}"
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
    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(torch.device(device))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
    try:
        yield
    except BaseException as error:
        # NCCL would wait for work that the others do not do, where this process alone fails.
        if not on_gpu or getattr(error, "everywhere", False):
            _forget_frames(error)
            _end()
        raise
    _end()


def _end() -> None:
    """Destroy the group, and wait until its threads hold nothing.

    A thread of gloo drops the tensors of a collective after the collective has returned, for which it needs Python:
    where Python is at its end by then, the process aborts ("terminate called without an active exception"). The threads
    end with the group, where nothing holds it; caches of FSDP do.
    """
    dist.destroy_process_group()
    gc.collect()
    time.sleep(SETTLING_SECONDS)


def _forget_frames(error: BaseException) -> None:
    """Empty the frames that raised an error and its causes: their variables hold the group."""
    seen: set[int] = set()
    errors = [error]
    while errors:
        found = errors.pop()
        seen.add(id(found))
        traceback.clear_frames(found.__traceback__)
        errors += [e for e in (found.__cause__, found.__context__) if e is not None and id(e) not in seen]
