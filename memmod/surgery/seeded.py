"""Runs a model with fixed draws: the same random numbers every time, and none taken from the caller."""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Draws:
    """Whether a run took random numbers."""

    taken = False


@contextmanager
def fixed_draws(tensors: list[Tensor]) -> Iterator[Draws]:
    """A scope in which torch's, Python's and numpy's generators start from one seed; their states return afterwards.

    Args:
        tensors: what the model is run on; their devices' generators are fixed too.
    """
    devices = sorted({t.device.index or 0 for t in tensors if t.is_cuda})
    numpy = sys.modules.get("numpy")
    own, numpys = random.getstate(), numpy.random.get_state() if numpy else None
    draws = Draws()
    try:
        with torch.random.fork_rng(devices):
            # Not torch.manual_seed, which sets every device's generator.
            torch.default_generator.manual_seed(0)
            for device in devices:
                torch.cuda.default_generators[device].manual_seed(0)
            random.seed(0)
            if numpy:
                numpy.random.seed(0)
            before = _states(devices)
            yield draws
            draws.taken = before != _states(devices)
    finally:
        random.setstate(own)
        if numpy:
            numpy.random.set_state(numpys)


def _states(devices: list[int]) -> list[Any]:
    numpy = sys.modules.get("numpy")
    states = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
    numpys = pickle.dumps(numpy.random.get_state()) if numpy else None
    return [*(state.numpy().tobytes() for state in states), random.getstate(), numpys]
