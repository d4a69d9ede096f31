"""One of the processes of a round that is killed or goes on: FOLDER FILE [sharded] [PROCESS:KIND:STEP]."""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from memmod.distributed.launch import process_group
from tests.distributed.problem import whole_round
from tests.unlearning.resume_run import kill_at


def main(folder: str, file: str, sharded: bool) -> None:
    wf, result = whole_round(folder, sharded, resume=True)
    memories = wf.memory_state()
    if dist.get_rank() == 0:
        history = torch.tensor([[e.step, e.mean_retain, *e.acc_forget, *e.losses.values()] for e in result.history[1:]])
        save_file({**memories, "history": history}, file)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, file, *more = sys.argv[1:]
    sharded = "sharded" in more
    for kill in (word for word in more if word != "sharded"):
        process, kind, step = kill.split(":")
        if os.environ["RANK"] == process:
            kill_at(kind, int(step))
    with process_group("cpu"):
        main(folder, file, sharded)
