"""A model whose parameters are split over the processes, block by block (FSDP2)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from memmod.errors import ModelError, RunError

# A block of fewer parameters travels with what holds it: what is sent at once is then large enough to be worth it.
LEAST = 2**20


def shard(model: nn.Module, device: torch.device | str = "cpu", least: int = LEAST, **options: Any) -> nn.Module:
    """Split a model's parameters, memories too, over the processes of the default group, in place.

    By `torch.distributed.fsdp.fully_shard`: each process keeps a part of every parameter, and has a block whole only
    while it runs. The members of the model's `nn.Sequential`s and `nn.ModuleList`s are blocks. Optimiser and gradients
    are split with the memories.

    Args:
        model: on the CPU, the same on every process; its parameters move to `device` part by part.
        least: smallest number of parameters of a block.
        options: as `fully_shard` takes them, `mp_policy` for example.

    Raises:
        RunError: there is no process group.
        ModelError: the model cannot be split.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RunError(
            "a model is split over the processes of a group, but this process is in none: start it with torchrun, or "
            "call torch.distributed.init_process_group() first"
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    for parameter in model.parameters():
        # FSDP takes contiguous parameters alone.
        parameter.data = parameter.data.contiguous()
    try:
        for block in _blocks(model, least):
            fully_shard(block, mesh=mesh, **options)
        fully_shard(model, mesh=mesh, **{"reshard_after_forward": True, **options})
    except (ValueError, NotImplementedError, AssertionError) as error:
        raise ModelError(f"{type(model).__name__} cannot be split over processes by FSDP ({error})") from error
    model.to(device)
    return model


def _blocks(model: nn.Module, least: int) -> list[nn.Module]:
    """The modules that are split by themselves, inner ones first; none shares a parameter with what is not in it."""
    found: list[nn.Module] = []
    taken: set[int] = set()

    def visit(module: nn.Module, is_member: bool) -> None:
        for child in module.children():
            visit(child, isinstance(module, (nn.Sequential, nn.ModuleList)))
        # A layer by itself may be read without being called, a list cannot be called.
        if not is_member or not any(True for _ in module.children()) or isinstance(module, nn.ModuleList):
            return
        own = [parameter for parameter in module.parameters() if id(parameter) not in taken]
        if sum(parameter.numel() for parameter in own) >= least and not shared & set(map(id, own)):
            found.append(module)
            taken.update(map(id, own))

    shared = _shared(model)
    visit(model, False)
    return found


def _shared(model: nn.Module) -> set[int]:
    """Parameters that two modules hold."""
    seen: set[int] = set()
    twice: set[int] = set()
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                (twice if id(parameter) in seen else seen).add(id(parameter))
    return twice
