"""What a launcher such as torchrun says to each of the processes that it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping

# What torchrun, and what else speaks its language, says to each process.
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher started this process as one of a group."""
    return all(name in environment for name in _VARIABLES)


def launched_rank(environment: Mapping[str, str] = os.environ) -> int:
    """The number of this process among those that a launcher started; 0 without one."""
    return int(environment["RANK"]) if is_launched(environment) else 0


def launched_count(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes a launcher started; 1 without one."""
    return int(environment["WORLD_SIZE"]) if is_launched(environment) else 1
