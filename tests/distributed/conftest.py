"""Threads as in the processes that tests start, and a process group of this process alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist

from tests.unlearning.problem import one_thread


@pytest.fixture(autouse=True)
def as_launched() -> Iterator[None]:
    """One thread, as the processes that tests start."""
    with one_thread():
        yield


@pytest.fixture
def alone() -> Iterator[None]:
    """`torch.distributed` with one process, where FSDP casts and shards as with many."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
