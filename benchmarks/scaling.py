"""What a round of unlearning takes by number of classes: bytes counted and parts of a step timed, for one network.

    OMP_NUM_THREADS=1 python -m benchmarks.scaling
    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 -m benchmarks.scaling --classes 1000 [--shard]

Times are medians of this process's CPU time, so that other work on the machine counts little. Several processes print
those of the first; what they wait for each other is not in it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.distributed as dist

from memmod import modulate
from memmod.data import Dataset, TensorSplit
from memmod.distributed.launch import process_group
from memmod.distributed.launched import is_launched
from memmod.distributed.sharded import local
from memmod.distributed.sharding import shard
from memmod.surgery.random_weights import randomise
from memmod.unlearning import Trainer, UnlearnConfig
from memmod.unlearning.expansion import expand
from memmod.unlearning.monitor import Evaluation
from memmod.unlearning.objectives import gate_penalty
from memmod.unlearning.round import Round

REPEATS = 5
SHAPE = (3, 64, 64)
BATCH = 32


def dataset(classes: int) -> Dataset:
    """Two random images of every class."""
    labels = torch.arange(classes).repeat(2)
    few = torch.randn(2 * BATCH, *SHAPE, generator=torch.Generator().manual_seed(0))

    class Repeated(TensorSplit):
        def batch(self, indices: torch.Tensor) -> torch.Tensor:
            return few[indices % len(few)]

        def subset(self, indices: torch.Tensor) -> TensorSplit:
            return Repeated(self.images[indices], self.labels[indices], 1.0, (0.0,), (1.0,))

    split = Repeated(torch.zeros(len(labels), 1), labels, 1.0, (0.0,), (1.0,))
    names = tuple(f"class {c}" for c in range(classes))
    return Dataset("random", split, split, names, SHAPE)


def timed(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Median seconds of a call."""
    run()
    times = []
    for _ in range(REPEATS):
        before = clock()
        run()
        times.append(clock() - before)
    return statistics.median(times)


def first_round(model: str, classes: int, folder: str | None, sharded: bool) -> Round:
    """A round that has made one step."""
    base = randomise(timm.create_model(model, num_classes=classes)).eval()
    wf = modulate(base, classes, torch.randn(2, *SHAPE))
    if sharded:
        shard(wf)
    config = UnlearnConfig(batch_size=BATCH, steps=1000, validation_images=1, statistics_fraction=0.0)
    data = dataset(classes)
    few = data.train.subset(torch.arange(classes)[:BATCH])
    trainer = Trainer.__new__(Trainer)
    trainer.wf, trainer.config, trainer.train, trainer.validation = wf, config, data.train, few
    trainer.data_name, trainer.class_names, trainer.path = data.name, data.class_names, None
    trainer.progress, trainer.checkpoint_every = (lambda _: None), 50
    if folder is not None:
        trainer.path = Path(folder) / "checkpoint.safetensors"
    round_ = Round(trainer)
    round_.best = Evaluation(0, {}, (0.0,) * classes, 1.0)
    round_.advance()
    return round_


def bytes_of(tensors: list[torch.Tensor]) -> int:
    return sum(local(tensor).numel() * tensor.element_size() for tensor in tensors)


def measure(model: str, classes: int, sharded: bool) -> dict[str, float]:
    """Bytes of this process, and seconds."""
    clock = time.process_time
    with tempfile.TemporaryDirectory() as folder:
        round_ = first_round(model, classes, folder, sharded)
        memories = round_.memories
        found: dict[str, float] = {
            "units": sum(memory.shape[1] for memory in memories),
            "base": bytes_of([p for p in round_.wf.parameters() if not p.requires_grad]),
            "memories": bytes_of(memories),
            "gradients": bytes_of([memory.grad for memory in memories]),
            "optimiser": bytes_of([v for state in round_.optimiser.state.values() for v in state.values() if v.dim()]),
            "best": bytes_of(list(round_.best_memories.values())),
        }
        found["step"] = timed(round_.advance, clock)
        if is_launched():
            return found

        def penalty() -> None:
            gate_penalty(memories, "sigmoid").backward()

        found["penalty"] = timed(penalty, clock)
        found["Adam"] = timed(round_.optimiser.step, clock)
        found["clip"] = timed(lambda: round_.parallel.clip(memories, 1e9), clock)
        labels = torch.arange(BATCH) % classes
        for repeats in (1, 8):
            found[f"selections, T = {repeats}"] = timed(
                lambda repeats=repeats: expand(labels, classes, repeats, 3, round_.generator), clock
            )
        found["save"] = timed(round_.save, clock)
        found["checkpoint"] = round_.trainer.path.stat().st_size
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 1000, 21000])
    parser.add_argument("--shard", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    with process_group("cpu"):
        for classes in options.classes:
            found = measure(options.model, classes, options.shard)
            if dist.is_initialized() and dist.get_rank() > 0:
                continue
            print(f"{options.model}, {classes} classes, {BATCH} images of {SHAPE}, {torch.get_num_threads()} thread")
            for name, value in found.items():
                print(f"  {name:20} " + (f"{value:14,d}" if isinstance(value, int) else f"{1e3 * value:12.1f} ms"))


if __name__ == "__main__":
    main()
