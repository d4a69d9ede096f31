"""One process of a group: first_steps.py FILE; process 0 writes what the group came to."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from memmod.distributed.launch import process_group
from tests.distributed.problem import STEPS, gradients, whole_round
from tests.unlearning.problem import modulated

OBJECTIVES = ("masked-distillation", "inverse-ce")


def nothing_on_one_process() -> dict[str, torch.Tensor]:
    """Gradients where process 0 forgets a class and the others nothing, three steps in a row."""
    wf, x = modulated(), torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    parallel = DistributedDataParallel(wf)
    for _ in range(3):
        wf.zero_grad(set_to_none=True)
        parallel(x, forget=1 if dist.get_rank() == 0 else None).square().sum().backward()
    return {f"nothing/{name}": memory.grad.clone() for name, memory in wf.named_memories()}


def main(file: str) -> None:
    found = nothing_on_one_process() | {"count": torch.tensor(dist.get_world_size())}
    for step in STEPS:
        for objective in OBJECTIVES:
            for sharded in (False, True):
                for name, gradient in gradients(step, objective, sharded).items():
                    found[f"{step}/{objective}/{sharded}/{name}"] = gradient
    for sharded in (False, True):
        wf, result = whole_round(sharded=sharded)
        found |= {f"round/{sharded}/{name}": memory for name, memory in wf.memory_state().items()}
        found[f"history/{sharded}"] = torch.tensor([[e.step, e.mean_retain, *e.acc_forget] for e in result.history])
    # What the other processes have is the same to the bit.
    own = torch.cat([tensor.flatten().double() for tensor in found.values()])
    first = own.clone()
    dist.broadcast(first, 0)
    assert torch.equal(own, first), f"process {dist.get_rank()} came to something else"
    if dist.get_rank() == 0:
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, file)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group("cpu"):
        main(sys.argv[1])
