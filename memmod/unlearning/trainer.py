"""One round of training in which a model learns to forget each of its classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from memmod.data import at_most, check_classes
from memmod.distributed import processes
from memmod.errors import DataError, ModelError, RunError
from memmod.files import sharded_checkpoint
from memmod.files.checkpoint import FILE_NAME, Checkpoint
from memmod.unlearning.presets import UnlearnConfig, default
from memmod.unlearning.progress import Progress
from memmod.unlearning.round import Round, UnlearnResult

if TYPE_CHECKING:
    from memmod.data import Dataset, Split
    from memmod.model import ModulatedModel


class Trainer:
    """Trains the memories of a modulated model; the base stays frozen, the test split is never looked at.

    In a process group (`torch.distributed.init_process_group`) all processes share the round: each makes a `Trainer`
    of the same model, data and settings, runs its rows of every batch, and ends with the memories that one process
    would come to, but for the order of sums. Process 0 writes, reports progress and warns. Where FSDP has split the
    memories (`memmod.distributed.sharding.shard`), they, their gradients and the optimiser stay split.

    Args:
        wf: the modulated model; `fit` changes its memories.
        data: images and labels of every class; only its training split is used.
        config: default: the preset `default`.
        run_folder: where the checkpoint goes; None: none is written.
        validation: images of every class to choose the best state on; default: held out of the training split.
        checkpoint_every: steps between two checkpoints; each evaluation writes one too.
        progress: called after every step and every evaluation.

    Raises:
        DataError: a class is missing from the data, or the data's classes are not the model's.
        ModelError: the gates cannot be trained.
        RunError: `checkpoint_every` is below 1.
    """

    def __init__(
        self,
        wf: ModulatedModel,
        data: Dataset,
        config: UnlearnConfig | None = None,
        run_folder: str | os.PathLike[str] | None = None,
        *,
        validation: Split | None = None,
        checkpoint_every: int = 50,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        if checkpoint_every < 1:
            raise RunError(f"checkpoint_every is {checkpoint_every}; it must be at least 1 step")
        if wf.config.gate == "hard":
            raise ModelError("gates of kind 'hard' have no gradient: modulate with gate='sigmoid' and train that")
        self.wf = wf
        self.config = config or default(wf)
        self.class_names = tuple(wf.class_names or data.class_names)
        self.path = None if run_folder is None else Path(run_folder) / FILE_NAME
        self.checkpoint_every = checkpoint_every
        self.progress = progress or (lambda _progress: None)
        if data.num_classes != wf.num_classes:
            raise DataError(f"{data.name} has {data.num_classes} classes, but the model forgets {wf.num_classes}")
        held_out = 1 if validation is None else 0
        check_classes(f"the training split of {data.name}", data.train.labels, self.class_names, 1 + held_out)
        self.train, self.validation = data.train, validation
        if validation is None:
            self.train, self.validation = _held_out(data.train, self.config, self.class_names)
        check_classes(f"the validation split of {data.name}", self.validation.labels, self.class_names)
        self.data_name = data.name

    def fit(self, resume: bool = False) -> UnlearnResult:
        """Train, and leave the best state's memories in the model.

        Args:
            resume: go on from the checkpoint in the run folder, where there is one. The memories become bit-identical
                to those of a round without interruption (same machine, threads and torch).

        Raises:
            RunError: the loss is not finite (the best state is kept, in the model and in the checkpoint); a checkpoint
                of another run, or one that `resume` was not given for.
        """
        with _others_awaited():
            return self._fit(resume)

    def _fit(self, resume: bool) -> UnlearnResult:
        found = processes.by_first(lambda: self._find_checkpoint(resume))
        with _own_random_numbers(self.config.seed, self.wf.device):
            round_ = Round(self)
            if found is not None:
                checkpoint = self._load_checkpoint(found)
                processes.agreed(lambda: round_.restore(checkpoint, found))
            try:
                round_.run()
            finally:
                round_.keep_best()
                round_.parallel.close()
        return round_.result()

    def _find_checkpoint(self, resume: bool) -> Path | None:
        """The newest checkpoint: a file, or the folder of one that is in parts."""
        if self.path is None:
            return None
        folder = self.path.with_name(sharded_checkpoint.FOLDER_NAME)
        there = [path for path in (self.path, sharded_checkpoint.card_of(folder)) if path.exists()]
        if not there:
            return None
        newest = max(there, key=lambda path: path.stat().st_mtime_ns)
        found = self.path if newest == self.path else folder
        if not resume:
            raise RunError(f"{found} holds an earlier round: resume it, delete it, or choose another run folder")
        return found

    def _load_checkpoint(self, path: Path) -> Checkpoint:
        if path == self.path:
            return processes.by_first(lambda: Checkpoint.load(path))
        memories = dict(self.wf.named_memories())

        def empty(group: str, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            memory = memories.get(name.rpartition(":")[0] if group == "optimiser" else name)
            if memory is None or tuple(memory.shape) != shape:
                return torch.empty(shape, dtype=dtype)
            return torch.empty_like(memory.detach(), dtype=dtype)

        return sharded_checkpoint.load(path, empty)


def _held_out(train: Split, config: UnlearnConfig, class_names: tuple[str, ...]) -> tuple[Split, Split]:
    """(training, validation): a share of every class, of which about `validation_images` at most are used."""
    rest, held = train.holdout(config.validation_fraction, config.seed, class_names)
    return rest, held.subset(at_most(held.labels, config.validation_images, config.seed))


@contextmanager
def _own_random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """A scope with seeded global generators, for networks that draw; the caller's are restored afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def _others_awaited() -> Iterator[None]:
    """A scope that says in words when another process ended while this one waited for it."""
    try:
        yield
    except RuntimeError as error:
        lost = (dist.DistError,) if dist.is_available() else ()
        if processes.count() == 1 or not (isinstance(error, lost) or "gloo" in str(error)):
            raise
        raise RunError(
            f"process {processes.rank()} of {processes.count()} waited for another one, which ended or does not "
            "answer: that one says why; start all of them again with resume"
        ) from error
