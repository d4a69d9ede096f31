"""One run of a method: on a copy of the network, timed, checked, with what it costs to keep."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from memmod.errors import RunError
from memmod.surgery.base_copy import detached_copy
from memmod.unlearning.baselines.method import ForgetTask, Method, check_weights


@dataclass(frozen=True)
class Outcome:
    """What a method made of a task.

    Args:
        network: in eval mode, of the task's architecture unless the method wraps it.
        seconds: wall time of the run, without the copy it worked on.
        bytes: what has to be kept for these classes beside the base.
    """

    network: nn.Module
    seconds: float
    bytes: int


def unlearn_with(method: Method, task: ForgetTask, config: Any = None) -> Outcome:
    """Run a method on a copy of the task's network; the task and the global random numbers stay as they are.

    Args:
        config: of the method's own kind; default: its defaults, the paper's.

    Raises:
        Diverged: the loss or the weights are not finite.
        RunError: a config of another method, classes that cannot be forgotten, or a split without images.
    """
    config = method.config() if config is None else config
    if not isinstance(config, method.config):
        raise RunError(f"{method.name} takes a {method.config.__name__}, not a {type(config).__name__}")
    task.is_forgotten()
    for what, split in (("forgotten", task.forget), ("retained", task.retain)):
        if len(split) == 0:
            raise RunError(f"the task has no {what} images: give some of every class")
    network = detached_copy(task.network).eval().requires_grad_(True)
    devices = [task.device] if task.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(task.seed)
        started = time.perf_counter()
        result = method.run(replace(task, network=network), config)
        seconds = time.perf_counter() - started
    for parameter in result.parameters():
        parameter.grad = None
    return Outcome(check_weights(result.eval(), method.name), seconds, method.stored(task, config, result))
