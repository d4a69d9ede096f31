"""The training of a base: an ordinary classifier on cross-entropy, resumable from a checkpoint."""

from __future__ import annotations

import copy
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memmod.data import Dataset, Split, batches_of, check_classes
from memmod.errors import ModelError, RunError
from memmod.files.checkpoint import Checkpoint, load_optimiser, optimiser_tensors
from memmod.files.saveable_state import saveable_state, serialised_state
from memmod.muon import Muon, hidden_weights

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 15.0
EVALUATION_BATCH = 500
OPTIMISERS = ("adamw", "muon")
# A step of training takes .67 (zoo's ResNet), .77 (VGG) and 1.0 (ViT) of its time in NCHW, 28 × 28 images, one Zen 5
# core.
LAYOUT = torch.channels_last


@dataclass(frozen=True)
class TrainConfig:
    """How a base is trained: AdamW with a one-cycle learning rate (arXiv 1708.07120) on cross-entropy.

    Args:
        epochs: passes over the training split.
        lr: AdamW's highest learning rate.
        weight_decay: AdamW's.
        label_smoothing: the share of a label that goes to all classes alike.
        shift: moves images by up to that many pixels.
        flip: mirrors half of the images.
    """

    epochs: int = 6
    batch_size: int = 128
    lr: float = 3e-3
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    shift: int = 0
    flip: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise RunError(f"epochs is {self.epochs} and batch_size {self.batch_size}; both must be at least 1")


def default_training(model: str, dataset: Dataset) -> TrainConfig:
    """Settings under which the small networks reach their accuracy on small images; a start for other models.

    Args:
        model: its name, as `create_model` takes it.
    """
    few = len(dataset.train) < 5000
    config = TrainConfig(epochs=60, batch_size=64) if few else TrainConfig(epochs=6)
    if model == "vit":
        # On a held-out third of the digits' training half, two seeds: 0.963 with lr 4e-3 and dropout, 0.950 with a mean
        # over patches instead of a class token; one seed without dropout: 0.963 with 8e-3, 0.952 with 4e-3, 0.90 with
        # 2e-3. Shifted images cost 0.05.
        config = replace(config, lr=4e-3 if few else 2e-3, weight_decay=0.05, batch_size=32 if few else 128)
    else:
        config = replace(config, shift=1)
    return replace(config, flip=dataset.name == "fashion-mnist")


def check_before_training(
    model: nn.Module,
    dataset: Dataset,
    config: TrainConfig | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> None:
    """Find what would end a training, or the unlearning after it, before their first step.

    Checked are the number of images of each class, that the model takes the images, that its state can be saved, and
    the images themselves (`Split.check`).

    Args:
        config: default: `TrainConfig()`.
        on_image: called with (images checked, images in all) of either split now and then, for progress.

    Raises:
        DataError: too few images of a class, or images that cannot be used.
        ModelError: the model does not fit the images and classes, or its state cannot be saved.
        RunError: batches of one image, where BatchNorm needs two.
    """
    # unlearning holds out some of the training images of every class
    check_classes(f"the training split of {dataset.name}", dataset.train.labels, dataset.class_names, at_least=2)
    check_classes(f"the test split of {dataset.name}", dataset.test.labels, dataset.class_names)
    serialised_state(model)
    _check_fits(model, dataset)
    if (config or TrainConfig()).batch_size == 1:
        _check_one_image(model, dataset)
    for split in (dataset.train, dataset.test):
        split.check(on_image)


def _check_fits(model: nn.Module, dataset: Dataset) -> None:
    x = dataset.train.batch(torch.arange(2))
    training = model.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = model.eval()(x)
    # a network raises whatever its layers raise on a shape that they do not take
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{type(model).__name__} does not take images of {tuple(x.shape[1:])} ({reason}): choose another image "
            "size or another model"
        ) from error
    finally:
        model.train(training)
    expected = (len(x), dataset.num_classes)
    if not isinstance(logits, Tensor) or logits.shape != expected:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"{type(model).__name__} returns {found} for {expected[0]} images of {expected[1]} classes, not logits of "
            f"{expected}: choose a classifier"
        )


def _check_one_image(model: nn.Module, dataset: Dataset) -> None:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        # a copy, whose statistics may change
        _forward(copy.deepcopy(model).train(), dataset.train.batch(torch.arange(1)))


def _forward(model: nn.Module, x: Tensor) -> Tensor:
    """Logits in training mode. Raises RunError where BatchNorm would need more than one image."""
    try:
        return model(x)
    except ValueError as error:
        if len(x) > 1:
            raise
        raise RunError(f"the model cannot be trained on one image a step ({error}): raise batch_size") from error


def train_model(
    model: nn.Module,
    dataset: Dataset,
    config: TrainConfig | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> dict[str, Any]:
    """Train a base in place and measure it on the test split.

    Args:
        model: a classifier of `dataset`'s classes.
        config: default: `TrainConfig()`.
        progress: called after each step with (step, steps, loss).

    Returns:
        {"accuracy": on the test split, "class_accuracy": per class, "train_loss": of the last epoch}.

    Raises:
        RunError: the loss is not finite; `model` is left as it was at that step.
    """
    loss = fit(model, dataset, config, progress)
    return measure(model, dataset) | {"train_loss": loss}


def measure(model: nn.Module, dataset: Dataset) -> dict[str, Any]:
    """{"accuracy": of a model on the test split, "class_accuracy": per class}."""
    accuracy, by_class = accuracies(model, dataset.test, dataset.num_classes)
    return {"accuracy": accuracy, "class_accuracy": by_class}


def fit(
    model: nn.Module,
    dataset: Dataset,
    config: TrainConfig | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    *,
    steps: int | None = None,
    augmented: float = 1.0,
    optimiser: str = "adamw",
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> float:
    """Train a base in place, on the device where it is, and return the mean loss of the last epoch.

    Args:
        model: a classifier of `dataset`'s classes; left in eval mode.
        config: default: `TrainConfig()`.
        progress: called after each step with (step, steps, loss).
        steps: instead of the configuration's whole epochs.
        augmented: share of the steps, the first ones, whose images are augmented; the others see them as they are.
        optimiser: "adamw"; or "muon": Muon for the weights of `memmod.muon.hidden_weights`, AdamW for all others, at
            one learning rate.
        checkpoint: file that takes the state now and then and after the last step; None: none is written.
        resume: go on from that file where it is there. The weights become bit-identical to those of a training
            without interruption (same machine, device, threads and torch); on another device it goes on too.
        checkpoint_seconds: least time between two checkpoints; ten times what one takes to write, if that is more.

    Raises:
        RunError: the loss is not finite (`model` is left as it was at that step), a batch of one image where BatchNorm
            needs two, an unknown optimiser, or a checkpoint that is damaged or of other settings.
    """
    path = None if checkpoint is None else Path(checkpoint)
    device = _device(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _in_training_layout(model):
        training = _Training(model, dataset, config or TrainConfig(), steps, augmented, optimiser)
        if path is not None and resume and path.exists():
            training.restore(Checkpoint.load(path), path)
        training.run(progress, path, checkpoint_seconds)
    model.eval()
    return sum(training.losses) / len(training.losses)


@contextmanager
def _in_training_layout(model: nn.Module) -> Iterator[None]:
    """A scope in which the weights are in `LAYOUT`; if they were contiguous, and then are again."""
    tensors = [*model.parameters(), *model.buffers()]
    # The layout is one of images: weights of volumes have five dimensions.
    converts = all(tensor.is_contiguous() and tensor.dim() < 5 for tensor in tensors)
    if converts:
        model.to(memory_format=LAYOUT)
    try:
        yield
    finally:
        if converts:
            model.to(memory_format=torch.contiguous_format)


class _Training:
    """The state of a training: what a checkpoint holds, and what is made from the settings again."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        config: TrainConfig,
        steps: int | None = None,
        augmented: float = 1.0,
        optimiser: str = "adamw",
    ) -> None:
        self.model, self.dataset, self.config = model, dataset, config
        self.device = _device(model)
        self.per_epoch = len(batches_of(torch.arange(len(dataset.train)), config.batch_size))
        self.steps = config.epochs * self.per_epoch if steps is None else steps
        self.augmented = round(augmented * self.steps)
        self.named_optimiser = optimiser
        self.optimisers = _optimisers(model, config, optimiser)
        self.schedules = self._schedules()
        self.generator = torch.Generator().manual_seed(config.seed)
        torch.manual_seed(config.seed)
        self.step = 0
        self.order = torch.empty(0, dtype=torch.int64)
        self.losses: list[float] = []

    def run(self, progress: Callable[[int, int, float], None] | None, path: Path | None, seconds: float) -> None:
        """Every step that is left, with a checkpoint now and then and one after the last step."""
        self.model.train()
        saved = time.monotonic()
        while self.step < self.steps:
            self.advance()
            if progress is not None:
                progress(self.step, self.steps, self.losses[-1])
            now = time.monotonic()
            if path is not None and (self.step == self.steps or now - saved >= seconds):
                self.save(path)
                saved = time.monotonic()
                seconds = max(seconds, 10 * (saved - now))

    def advance(self) -> None:
        """One optimiser step.

        Raises:
            RunError: the loss is not finite, or BatchNorm gets a single value.
        """
        config, train = self.config, self.dataset.train
        if self.step % self.per_epoch == 0:
            self.order = torch.randperm(len(train), generator=self.generator)
            self.losses.clear()
        chosen = batches_of(self.order, config.batch_size)[self.step % self.per_epoch]
        # images and draws are the CPU's wherever the model is, so that the order does not depend on the device
        images = train.batch(chosen)
        x = (augment(images, config, self.generator) if self.step < self.augmented else images).to(self.device)
        labels = train.labels[chosen].to(self.device)
        loss = F.cross_entropy(_forward(self.model, x), labels, label_smoothing=config.label_smoothing)
        # once a step: a GPU's queue is empty behind it
        value = loss.item()
        if not math.isfinite(value):
            raise RunError(
                f"the loss is {value} at step {self.step + 1} of {self.steps}: lower lr ({config.lr}), and start anew"
            )
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser, _ in self.optimisers.values():
            optimiser.step()
        for schedule in self.schedules:
            schedule.step()
        self.losses.append(value)
        self.step += 1

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        progress = {"step": self.step, "losses": self.losses, "environment": _environment(self.device)}
        tensors = {
            "model": saveable_state(self.model),
            **{group: optimiser_tensors(*found) for group, found in self.optimisers.items()},
            "order": {"order": self.order},
            "generators": {"draws": self.generator.get_state(), **self._random_state()},
        }
        Checkpoint(self._description(), progress, tensors).save(path)

    def restore(self, checkpoint: Checkpoint, path: Path) -> None:
        """Take over the state of a checkpoint of this very training.

        Raises:
            RunError: it is of another training.
        """
        checkpoint.check_run(self._description(), path)
        from memmod.files.schemas import TrainingProgress

        groups = ("model", *self.optimisers, "order", "generators")
        progress, tensors = checkpoint.checked_progress(TrainingProgress, groups, path), checkpoint.tensors
        environment = _environment(self.device)
        if progress.environment != environment:
            logger.warning(
                f"the checkpoint {path} was written under {progress.environment}, this is {environment}: the "
                "weights will differ in their last bits from those of an uninterrupted training"
            )
        self.step, self.losses = progress.step, progress.losses
        self.order = tensors["order"]["order"]
        self.model.load_state_dict(tensors["model"])
        for group, (optimiser, names) in self.optimisers.items():
            load_optimiser(optimiser, names, tensors[group])
        if self.step < self.steps:
            self.schedules = self._schedules(self.step - 1)
        self.generator.set_state(tensors["generators"]["draws"])
        torch.set_rng_state(tensors["generators"]["cpu"])
        if self.device.type == "cuda" and "cuda" in tensors["generators"]:
            torch.cuda.set_rng_state(tensors["generators"]["cuda"], self.device)

    def _random_state(self) -> dict[str, Tensor]:
        """States of the generators that layers draw from."""
        state = {"cpu": torch.get_rng_state()}
        return state | {"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else state

    def _schedules(self, last_step: int = -1) -> list[torch.optim.lr_scheduler.OneCycleLR]:
        """The learning rates from step `last_step` + 1 on."""
        # a rise of exactly one step, a fifth of 5, makes OneCycleLR divide by zero
        rise = 0.2 if self.steps != 5 else 0.3
        return [
            torch.optim.lr_scheduler.OneCycleLR(
                optimiser,
                self.config.lr,
                total_steps=self.steps,
                pct_start=rise,
                cycle_momentum=not isinstance(optimiser, Muon),
                last_epoch=last_step,
            )
            for optimiser, _ in self.optimisers.values()
        ]

    def _description(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to go on: settings, network and data, as JSON values."""
        layout = [f"{name} {tuple(tensor.shape)}" for name, tensor in self.model.state_dict().items()]
        labels = self.dataset.train.labels.cpu().contiguous().numpy().tobytes()
        return {
            **asdict(self.config),
            "network": sha256("\n".join(layout).encode()).hexdigest()[:16],
            "data": self.dataset.name,
            "training_labels": sha256(labels).hexdigest()[:16],
            **({} if self.steps == self.config.epochs * self.per_epoch else {"steps": self.steps}),
            **({} if self.augmented == self.steps else {"augmented_steps": self.augmented}),
            **({} if self.named_optimiser == "adamw" else {"optimiser": self.named_optimiser}),
        }


def _optimisers(
    model: nn.Module, config: TrainConfig, optimiser: str
) -> dict[str, tuple[torch.optim.Optimizer, list[str]]]:
    """Optimisers by the name of their state in a checkpoint, each with the names of its parameters."""
    if optimiser not in OPTIMISERS:
        raise RunError(f"optimiser is {optimiser!r}; it must be one of {', '.join(OPTIMISERS)}")
    parameters = dict(model.named_parameters())
    hidden = hidden_weights(model) if optimiser == "muon" else []
    others = [name for name in parameters if name not in set(hidden)]
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    found: dict[str, tuple[torch.optim.Optimizer, list[str]]] = {
        "optimiser": (torch.optim.AdamW([parameters[name] for name in others], **options), others)
    }
    if hidden:
        found["muon"] = (Muon([parameters[name] for name in hidden], **options), hidden)
    return found


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _environment(device: torch.device) -> dict[str, Any]:
    found = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    return found if device.type == "cpu" else {**found, "device": device.type}


def augment(x: Tensor, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """Images ``[B, C, H, W]`` shifted and mirrored at random, as `config` says: per sample, edges filled with the
    border's values.
    """
    batch, _, height, width = x.shape
    if config.shift:
        span = 2 * config.shift + 1
        dy, dx = torch.randint(span, (2, batch), generator=generator)
        padded = F.pad(x, (config.shift,) * 4, mode="replicate")
        rows = (dy[:, None] + torch.arange(height))[:, None, :, None]
        columns = (dx[:, None] + torch.arange(width))[:, None, None, :]
        x = padded[
            torch.arange(batch)[:, None, None, None], torch.arange(x.shape[1])[None, :, None, None], rows, columns
        ]
    if config.flip:
        mirrored = torch.rand(batch, generator=generator) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return x


@torch.no_grad()
def accuracies(model: nn.Module, split: Split, num_classes: int) -> tuple[float, list[float]]:
    """(accuracy, accuracy per class) of a model, where it is, on a split; a class without images gets NaN."""
    device = _device(model)
    predicted = torch.cat(
        [
            model(split.batch(part).to(device)).argmax(1).cpu()
            for part in torch.arange(len(split)).split(EVALUATION_BATCH)
        ]
    )
    right = (predicted == split.labels).double()
    counts = torch.bincount(split.labels, minlength=num_classes).double()
    per_class = torch.bincount(split.labels, weights=right, minlength=num_classes) / counts
    return right.mean().item(), per_class.tolist()
