"""Times calls on a GPU by CUDA events."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Protocol

import torch

# More than any second-level cache holds.
FLUSHED_BYTES = 256 << 20


class Device(Protocol):
    """What `seconds` needs of a device."""

    def event(self): ...

    def synchronise(self) -> None: ...

    def flush(self) -> None:
        """Fill the cache with something else, without waiting for it."""


class Cuda:
    """A CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.filler = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device=device)

    def event(self) -> torch.cuda.Event:
        return torch.cuda.Event(enable_timing=True)

    def synchronise(self) -> None:
        torch.cuda.synchronize(self.device)

    def flush(self) -> None:
        self.filler.zero_()


@functools.cache
def cuda(device: torch.device) -> Cuda:
    """The device's clock: one buffer to flush with serves all timings."""
    return Cuda(device)


def seconds(once: Callable[[], object], calls: int, device: Device, cold: bool = True) -> float:
    """The median of `calls` calls, each between two events.

    cold: the cache is flushed before each call, which also gives the host time to enqueue it: a call that it enqueues
    within the flush is timed without its overhead.
    """
    events = [(device.event(), device.event()) for _ in range(calls)]
    device.synchronise()
    for start, end in events:
        if cold:
            device.flush()
        start.record()
        once()
        end.record()
    device.synchronise()
    return statistics.median(start.elapsed_time(end) for start, end in events) / 1e3


def host_seconds(once: Callable[[], object], calls: int, device: Device) -> float:
    """What one call takes of the host, which does not wait for the device."""
    device.synchronise()
    start = time.perf_counter()
    for _ in range(calls):
        once()
    taken = time.perf_counter() - start
    device.synchronise()
    return taken / calls
