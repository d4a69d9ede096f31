"""One round of training: its state, its steps, its evaluations and its checkpoint."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memmod.distributed import processes
from memmod.distributed.sharded import parted_like, whole
from memmod.errors import MemmodError, RunError
from memmod.evaluation.sampled import SampledSplit
from memmod.files import sharded_checkpoint
from memmod.files.checkpoint import Checkpoint, load_optimiser, optimiser_tensors
from memmod.memory_file import check_memories
from memmod.unlearning.base_logits import FrozenLogits
from memmod.unlearning.expansion import expand
from memmod.unlearning.monitor import Evaluation, find_warnings
from memmod.unlearning.objectives import Batch, Losses, gate_penalty, get_objective, raised, weighted
from memmod.unlearning.parallel import Parallel, put_back, snapshot
from memmod.unlearning.presets import UnlearnConfig
from memmod.unlearning.progress import Progress
from memmod.unlearning.sampling import Sampler

if TYPE_CHECKING:
    from memmod.unlearning.round_progress import RoundProgress
    from memmod.unlearning.trainer import Trainer

logger = logging.getLogger(__name__)

# Of a batch that one class serves, an eighth is of that class: the statistics stay close to those of the data.
ONE_CLASS_SHARE = 8


@dataclass(frozen=True)
class UnlearnResult:
    """What a round came to; the model holds the best state.

    Args:
        config: the settings used.
        history: every evaluation, the first one before any step.
        best: the evaluation of the state that was kept.
        base_retain: the frozen network's accuracy on the validation images.
        warnings: what the log warned of.
        seconds: time spent training, interruptions left out.
    """

    config: UnlearnConfig
    history: tuple[Evaluation, ...]
    best: Evaluation
    base_retain: float
    warnings: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "config": self.config.to_dict(),
            "history": [evaluation.to_dict() for evaluation in self.history],
            "best": self.best.to_dict(),
            "base_retain": self.base_retain,
            "warnings": list(self.warnings),
            "seconds": self.seconds,
        }


class Round:
    """The state of one round: what a checkpoint holds, and what is made from the settings again."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.wf, self.config = trainer, trainer.wf, trainer.config
        self.names = [name for name, _ in self.wf.named_memories()]
        self.objective = get_objective(self.config.objective)
        self.set_size = min(self.config.max_set_size, self.wf.num_classes - 1)
        self.statistics = self.config.statistics_fraction if self.wf.has_batch_statistics else 0.0
        processes.check_same("round", self._description())
        self.parallel = Parallel(self.wf, self.config)
        self.sampler = Sampler(trainer.train.labels, self.wf.num_classes)
        self.generator = torch.Generator().manual_seed(self.config.seed)
        self.sampled = SampledSplit(
            trainer.validation,
            self.wf.num_classes,
            self.config.validation_others,
            self.generator,
            processes.by_shares,
        )
        self.base_retain = self.sampled.base_accuracy(self.wf)
        self.frozen: FrozenLogits | None = None
        if self.objective.needs_frozen:
            self.frozen = FrozenLogits(self.wf, trainer.train, self.config.steps * self.config.batch_size)
        self.memories = list(self.wf.memory_parameters())
        self.optimiser = torch.optim.Adam(self.memories, lr=self.config.lr)

        self.step = 0
        self.seconds = 0.0
        self.history: list[Evaluation] = []
        self.since_evaluation: list[list[float]] = []
        self.warned: set[str] = set()
        self.best: Evaluation | None = None
        self.best_memories: dict[str, Tensor] = snapshot(self.wf)

    def run(self) -> None:
        """Every step that is left."""
        started, before = time.monotonic(), self.seconds
        if not self.history:
            self.evaluate()
        while self.step < self.config.steps:
            losses = self.advance()
            self._tell(Progress(self.step, self.config.steps, losses=losses))
            self.seconds = before + time.monotonic() - started
            if self.step % self.config.eval_every == 0 or self.step == self.config.steps:
                self.evaluate()
                self.save()
            elif self.step % self.trainer.checkpoint_every == 0:
                self.save()

    def advance(self) -> Losses:
        """One optimiser step; its losses as numbers.

        Raises:
            RunError: a loss or a gradient is not finite; the memories are as they were before.
        """
        terms = self.objective.terms(self._one_class() if self._one_class_next() else self._mixed())
        penalty = whole(gate_penalty(self.memories, self.wf.config.gate))
        losses = weighted(terms, penalty, self.config.lambdas)
        self.optimiser.zero_grad(set_to_none=True)
        self.parallel.backward(losses, self.config.lambdas)
        norm = self.parallel.clip(self.memories, self.config.clip)
        *values, norm_value = torch.stack([*losses, norm.to(losses.total.dtype)]).detach().tolist()
        self._check_finite(Losses(*values), norm_value)
        self.optimiser.step()
        self.step += 1
        self.since_evaluation.append(values)
        return Losses(*values)

    def _check_finite(self, losses: Losses, norm: float) -> None:
        if all(map(math.isfinite, (*losses, norm))):
            return
        parts = ", ".join(f"{name} {value:.4g}" for name, value in losses._asdict().items())
        place = "the model"
        if self.trainer.path is not None and self.trainer.path.exists():
            place += f" and in {self.trainer.path}"
        raise RunError(
            f"the loss is not finite at step {self.step + 1} of {self.config.steps} ({parts}, gradient norm {norm:.4g})"
            f"; the best state, of step {self.best.step}, is kept in {place}. Lower lr ({self.config.lr:g}), take an "
            f"objective other than {self.config.objective!r}, or check the data for values that are not finite"
        )

    def _one_class_next(self) -> bool:
        """Whether the next step is one in which one class serves the whole batch, evenly spread over the round."""
        return math.floor((self.step + 1) * self.statistics) > math.floor(self.step * self.statistics)

    def _mixed(self) -> Batch:
        """A step in which every sample has a selection of its own."""
        images = self.sampler.mixed(self.config.batch_size, self.generator)
        labels = self.trainer.train.labels[images]
        expansion = expand(labels, self.wf.num_classes, self.config.expansion, self.set_size, self.generator)
        mine = processes.share(len(expansion.rows))
        needed, rows = expansion.rows[mine].unique(return_inverse=True)
        x, frozen = self._load(images[needed])
        rows, own, selection, forget = (
            t.to(self.wf.device) for t in (rows, expansion.selection[mine], expansion.selection, expansion.forget)
        )
        logits = self.wf.logits(self.parallel.model(x[rows], forget=own))
        labels = labels[expansion.rows].to(self.wf.device)
        return self._batch(logits, labels, selection, forget, None if frozen is None else frozen[rows])

    def _one_class(self) -> Batch:
        """A step in which one class serves the whole batch, under the batch's own statistics."""
        size = self.config.batch_size
        forgotten = max(1, size // ONE_CLASS_SHARE)
        c, images = self.sampler.one_class(forgotten, size - forgotten, self.generator)
        x, frozen = self._load(images[processes.share(size)])
        with self.wf.batch_statistics(), self.parallel.statistics():
            logits = self.wf.logits(self.parallel.model(x, forget=c))
        labels = self.trainer.train.labels[images].to(logits.device)
        selection = torch.full((size, 1), c, device=logits.device)
        return self._batch(logits, labels, selection, torch.arange(size, device=logits.device) < forgotten, frozen)

    def _load(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self.trainer.train.batch(images).to(self.wf.device)
        return x, None if self.frozen is None else self.frozen.of(images, x)

    def _batch(self, logits: Tensor, labels: Tensor, selection: Tensor, forget: Tensor, frozen: Tensor | None) -> Batch:
        """What the objective sees: all processes' rows, of which logits and frozen logits are this one's share."""
        logits = processes.gather_rows(logits, len(labels))
        frozen = None if frozen is None else processes.gather_rows(frozen, len(labels))
        return Batch(raised(logits, selection, self.config.margin), labels, selection, forget, frozen)

    def evaluate(self) -> None:
        """Measure this state on the validation split, keep it if it is the best, warn of what is wrong with it."""
        accuracies = self.sampled.accuracies(self.wf)
        losses = {}
        if self.since_evaluation:
            means = torch.tensor(self.since_evaluation, dtype=torch.float64).mean(0).tolist()
            losses = dict(zip(Losses._fields, means, strict=True))
        evaluation = Evaluation(self.step, losses, accuracies.acc_forget, accuracies.mean_retain)
        self.history.append(evaluation)
        self.since_evaluation.clear()
        if evaluation.better_than(self.best):
            self.best, self.best_memories = evaluation, snapshot(self.wf)
        # early on, every class lags and the rest has not settled
        if 2 * self.step >= self.config.steps:
            self._warn(evaluation)
        self._tell(Progress(self.step, self.config.steps, evaluation=evaluation))

    def _tell(self, progress: Progress) -> None:
        if self.parallel.is_first:
            self.trainer.progress(progress)

    def _warn(self, evaluation: Evaluation) -> dict[str, str]:
        """Log what is wrong with a state, each kind once per round."""
        found = find_warnings(evaluation, self.base_retain, self.trainer.class_names)
        for kind in sorted(found.keys() - self.warned):
            self._log(found[kind])
        self.warned |= found.keys()
        return found

    def _log(self, warning: str) -> None:
        if self.parallel.is_first:
            logger.warning(warning)

    def keep_best(self) -> None:
        """Put the best state's memories into the model."""
        put_back(self.wf, self.best_memories)

    def result(self) -> UnlearnResult:
        warnings = tuple(self._warn(self.best).values())
        return UnlearnResult(self.config, tuple(self.history), self.best, self.base_retain, warnings, self.seconds)

    def save(self) -> None:
        """Write the checkpoint, where there is a run folder: process 0 for all, or each its parts of split memories."""
        path = self.trainer.path
        if path is None or not (self.parallel.is_first or self.parallel.sharded):
            return
        progress = {
            "step": self.step,
            "seconds": self.seconds,
            "history": [evaluation.to_dict() for evaluation in self.history],
            "since_evaluation": self.since_evaluation,
            "best": self.best.to_dict(),
            "warned": sorted(self.warned),
            "environment": _environment(),
        }
        tensors = {
            "memories": snapshot(self.wf),
            "best": self.best_memories,
            "optimiser": optimiser_tensors(self.optimiser, self.names),
            "generators": {"draws": self.generator.get_state(), **_random_state(self.wf.device)},
        }
        checkpoint = Checkpoint(self._description(), progress, tensors)
        if not self.parallel.sharded:
            checkpoint.save(path)
            sharded_checkpoint.remove(path.with_name(sharded_checkpoint.FOLDER_NAME))
            return
        sharded_checkpoint.save(checkpoint, path.with_name(sharded_checkpoint.FOLDER_NAME))
        processes.by_first(lambda: path.unlink(missing_ok=True))

    def restore(self, checkpoint: Checkpoint, path: Path) -> None:
        """Take over the state of a checkpoint of this very round.

        Raises:
            RunError: it is of another round, or holds what does not fit this one.
        """
        checkpoint.check_run(self._description(), path)
        from memmod.unlearning.round_progress import GROUPS, RoundProgress

        progress, tensors = checkpoint.checked_progress(RoundProgress, GROUPS, path), checkpoint.tensors
        if progress.environment != _environment():
            self._log(
                f"the checkpoint {path} was written under {progress.environment}, this is {_environment()}: "
                "the memories will differ in their last bits from those of an uninterrupted round"
            )
        try:
            self._check_progress(progress)
            memories = dict(self.wf.named_memories())
            check_memories("the best state", tensors["best"], memories)
            check_memories("the memory state", tensors["memories"], memories)
            load_optimiser(self.optimiser, self.names, tensors["optimiser"])
            self.generator.set_state(tensors["generators"]["draws"])
            _set_random_state(self.wf.device, tensors["generators"])
            put_back(self.wf, self._parted(tensors["memories"]))
        except (MemmodError, RuntimeError, TypeError, KeyError) as error:
            raise RunError(f"the checkpoint {path} does not fit this round ({error}): delete it, start anew") from error
        self.step = progress.step
        self.seconds = progress.seconds
        self.history = progress.history
        self.since_evaluation = progress.since_evaluation
        self.best = progress.best
        self.warned = set(progress.warned)
        self.best_memories = self._parted(tensors["best"])

    def _parted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: parted_like(tensors[name], memory) for name, memory in self.wf.named_memories()}

    def _check_progress(self, progress: RoundProgress) -> None:
        if progress.step > self.config.steps:
            raise RunError(f"it is at step {progress.step} of {self.config.steps}")
        classes = {len(evaluation.acc_forget) for evaluation in (*progress.history, progress.best)}
        if classes != {self.wf.num_classes}:
            raise RunError(f"it holds accuracies of {sorted(classes)} classes, the model has {self.wf.num_classes}")

    def _description(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to go on: settings, base, layers and data, as JSON values."""
        return {
            **self.config.to_dict(),
            "base_sha256": self.wf.base_sha256,
            "modulation": self.wf.config.to_dict(),
            "layers": self.names,
            "data": self.trainer.data_name,
            "training_labels": _digest(self.trainer.train.labels),
            "validation_labels": _digest(self.trainer.validation.labels),
        }


def _digest(labels: Tensor) -> str:
    return sha256(labels.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def _environment() -> dict[str, Any]:
    found = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    return found if processes.count() == 1 else {**found, "processes": processes.count()}


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def _set_random_state(device: torch.device, state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
