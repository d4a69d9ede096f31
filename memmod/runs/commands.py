"""What the commands do, one function each: run folders in, run folders out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from memmod.data import Dataset, check_classes, load_data
from memmod.distributed import processes
from memmod.distributed.launch import own_device
from memmod.distributed.sharding import shard
from memmod.errors import RunError, SelectionError
from memmod.evaluation import Accuracies, Scorecard, restandardised, scorecard, without_gates
from memmod.evaluation import evaluate as measure
from memmod.export.weights import write_state
from memmod.files.checkpoint import FILE_NAME as CHECKPOINT
from memmod.model import ModulateConfig, ModulatedModel, modulate
from memmod.runs.device import usable_device
from memmod.runs.folder import MEMORY, METRICS, SCORECARD, RunFolder, remove_checkpoint, slug, versions, write_json
from memmod.runs.restore import Base, Unlearned, restore_base, restore_unlearned
from memmod.training import LAYOUT, TrainConfig, check_before_training, default_training, fit
from memmod.training import measure as measure_base
from memmod.unlearning import Trainer, preset
from memmod.unlearning.progress import Progress
from memmod.zoo import base_meta, create_model, save_base

OnStep = Callable[[int, int, float], None]
Checked = Callable[[int, int], None]


@dataclass(frozen=True)
class DataOptions:
    """Which data, and where and how they are read; as the options of `load_data`."""

    data: str = "digits"
    root: str | None = None
    image_size: int | None = None
    download: bool = False

    def load(self) -> Dataset:
        """The data set. Raises DataError."""
        return load_data(self.data, self.root, self.image_size, self.download)

    def settings(self) -> dict[str, Any]:
        """What a run records of them."""
        return {"data": self.data, "data_root": self.root, "image_size": self.image_size}


def train(
    out: str | os.PathLike[str],
    options: DataOptions,
    model: str = "resnet",
    *,
    pretrained: bool = False,
    changes: dict[str, Any] | None = None,
    device: str = "cpu",
    resume: bool = False,
    overwrite: bool = False,
    progress: OnStep | None = None,
    on_checked: Checked | None = None,
) -> Base:
    """Train a base and keep it in the run folder `out`.

    What would end the training, or the unlearning of the base, is looked for before the folder is made; the base is
    kept before it is measured.

    Args:
        changes: fields of `TrainConfig` that differ from the defaults for this model and data; epochs 0 keeps the
            pretrained weights as they are.
        device: where the training runs. It is no setting of the run: a checkpoint goes on wherever it is resumed.
        resume: go on from the checkpoint of an interrupted run of the same settings, or start where there is none. A
            finished run is returned as it is.
        on_checked: called with (images checked, images in all) of either split before the first step.

    Raises:
        MemmodError: data missing or unusable, unknown model, a device that cannot be used, existing run folder, other
            settings than the run to resume, a loss that is not finite.
    """
    where = usable_device(device)
    changes = dict(changes or {})
    untrained = changes.get("epochs") == 0
    if untrained and not pretrained:
        raise RunError("epochs is 0, which leaves random weights: train for at least 1, or start from --pretrained")
    dataset = options.load()
    config = default_training(model, dataset)
    config = TrainConfig(**{**asdict(config), **changes, **({"epochs": config.epochs} if untrained else {})})
    recorded = {"model": model, "pretrained": pretrained, **asdict(config), **({"epochs": 0} if untrained else {})}
    settings = {**options.settings(), **recorded}
    run = None
    if not overwrite and _is_occupied(out):
        run = RunFolder.start(out, "train", settings, resume=resume)
        if run.file(METRICS).exists():
            remove_checkpoint(run)
            return restore_base(run.path)
    checkpoint = Path(out) / CHECKPOINT
    goes_on = resume and checkpoint.exists()
    network = create_model(model, dataset.num_classes, dataset.input_shape, pretrained and not goes_on, config.seed)
    check_before_training(network, dataset, config, on_checked)
    if run is None:
        run = RunFolder.start(out, "train", settings, resume=resume, overwrite=overwrite)
    network.to(where)
    metrics: dict[str, Any] = {}
    if not untrained:
        metrics["train_loss"] = fit(network, dataset, config, progress, checkpoint=checkpoint, resume=resume)
    save_base(run.path, network.eval(), base_meta(model, dataset, config, metrics))
    metrics = {**measure_base(network, dataset), **metrics}
    save_base(run.path, network, base_meta(model, dataset, config, metrics))
    run.write_metrics(metrics)
    remove_checkpoint(run)
    return restore_base(run.path)


def _is_occupied(out: str | os.PathLike[str]) -> bool:
    """Whether there is something at `out` that a new run would have to resume or replace."""
    path = Path(out)
    return path.exists() and not (path.is_dir() and all(entry.name.startswith(".") for entry in path.iterdir()))


@dataclass(frozen=True)
class UnlearnOptions:
    """How to unlearn: a preset, the fields of `UnlearnConfig` that differ from it, and layers to leave alone.

    `shard` splits base, memories and optimiser over the processes of a group.
    """

    preset: str = "default"
    changes: dict[str, Any] = field(default_factory=dict)
    skip: tuple[str, ...] = ()
    device: str = "cpu"
    shard: bool = False


def unlearn(
    base: Base,
    out: str | os.PathLike[str],
    options: UnlearnOptions | None = None,
    *,
    data: DataOptions | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
    on_checked: Checked | None = None,
) -> Unlearned:
    """Train the memories of all classes of a base in one round, and keep them in the run folder `out`.

    The processes of a group share the round (`Trainer`); all of them call this, and process 0 writes.

    Args:
        data: default: what the base was trained on.
        resume: go on from the checkpoint of an interrupted run of the same settings, or start where there is none, on
            any number of processes. A finished run is returned as it is.
        progress: called after every step and every evaluation of the round, on process 0.
        on_checked: called with (training images checked, images in all) before the first step, on process 0: of its
            share.

    Raises:
        MemmodError: data or base missing or unusable, existing run folder, other settings than the run to resume, a
            loss that is not finite (the best state so far is kept).
    """
    options = options or UnlearnOptions()
    device = processes.agreed(lambda: usable_device(own_device(options.device)))
    wanted = data or DataOptions(base.meta["data"])
    dataset = _load_together(base, wanted)
    example = dataset.train.batch(torch.arange(2))
    wf = processes.agreed(lambda: _modulated(base, dataset, example, options))
    if not options.shard:
        wf.to(device, memory_format=LAYOUT)
    config = processes.agreed(lambda: preset(options.preset, wf, **options.changes))
    settings = {
        **wanted.settings(),
        "base": str(base.folder),
        "model": base.meta["model"],
        "skip": list(options.skip),
        "device": options.device,
        "preset": options.preset,
        **config.to_dict(),
    }
    processes.check_same("run", {**settings, "out": str(out), "resume": resume, "shard": options.shard})

    def entered() -> RunFolder | None:
        if overwrite or not _is_occupied(out):
            return None
        return RunFolder.start(out, "unlearn", settings, resume=resume)

    run = processes.by_first(entered)
    if run is not None and processes.by_first(lambda: run.file(METRICS).exists()):
        processes.by_first(lambda: remove_checkpoint(run))
        return processes.agreed(lambda: restore_unlearned(run.path, base.folder))
    processes.agreed(lambda: _check_images(dataset, on_checked))
    processes.agreed(lambda: wf.verify(example.to(wf.device)))
    if options.shard:
        processes.agreed(lambda: shard(wf, device))
    run = run or processes.by_first(
        lambda: RunFolder.start(out, "unlearn", settings, resume=resume, overwrite=overwrite)
    )
    trainer = processes.agreed(lambda: Trainer(wf, dataset, config, run.path, progress=progress))
    result = trainer.fit(resume=resume)
    card = {"unlearning": config.to_dict(), "seed": config.seed, "data": dataset.name, "model": base.meta["model"]}
    if options.shard or processes.rank() == 0:
        wf.save_memory(run.file(MEMORY), {**card, "metrics": result.best.to_dict()})

    def finish() -> None:
        run.write_metrics(result.to_dict())
        remove_checkpoint(run)

    processes.by_first(finish)
    return Unlearned(run, base, wf)


def _load_together(base: Base, wanted: DataOptions) -> Dataset:
    """The data set on every process; what is to be downloaded process 0 downloads."""

    def load() -> Dataset:
        return base.load_data(
            wanted.data, root=wanted.root, image_size=wanted.image_size, download=wanted.download or None
        )

    if wanted.download:
        processes.by_first(lambda: load() and None)
    return processes.agreed(load)


def _modulated(base: Base, dataset: Dataset, example: torch.Tensor, options: UnlearnOptions) -> ModulatedModel:
    config = ModulateConfig(skip=options.skip)
    return modulate(base.model, dataset.num_classes, example, config, class_names=dataset.class_names)


def _check_images(dataset: Dataset, on_checked: Checked | None) -> None:
    """Check the training images, each process its share of them."""
    train = dataset.train
    check_classes(f"the training split of {dataset.name}", train.labels, dataset.class_names, at_least=2)
    if processes.count() > 1:
        train = train.subset(processes.share(len(train)))
    train.check(on_checked if processes.rank() == 0 else None)


@dataclass(frozen=True)
class Evaluation:
    """A scorecard, and the accuracies with BatchNorm statistics taken anew (None for networks without BatchNorm)."""

    scorecard: Scorecard
    restandardised: Accuracies | None

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        anew = None if self.restandardised is None else self.restandardised.to_dict()
        return {**self.scorecard.to_dict(), "restandardised": anew}


def evaluate(
    unlearned: Unlearned,
    dataset: Dataset,
    *,
    device: str = "cpu",
    set_sizes: Sequence[int] = (2, 3),
    sets_per_size: int = 10,
    seed: int = 0,
    statistics: bool = True,
    on_image: Callable[[int], None] | None = None,
    on_checked: Checked | None = None,
) -> Evaluation:
    """Measure an unlearned run on the test split of its data, beside the controls, and record it in the run folder.

    Args:
        on_image: called with the number of images after each forward pass.
        on_checked: called with (test images checked, images in all) before the first of them.

    Raises:
        MemmodError: the device cannot be used, a class has no test images, or images cannot be used.
    """
    _check_test(dataset, on_checked)
    wf = unlearned.wf.to(usable_device(device), memory_format=LAYOUT)
    card = scorecard(
        wf,
        unlearned.base.model.to(wf.device),
        dataset.test,
        class_names=dataset.class_names,
        set_sizes=set_sizes,
        sets_per_size=sets_per_size,
        seed=seed,
        on_image=on_image,
    )
    anew = restandardised(wf, dataset.test) if statistics and wf.has_batch_statistics else None
    result = Evaluation(card, anew)
    write_json(unlearned.run.file(SCORECARD), result.to_dict())
    return result


@dataclass(frozen=True)
class Baked:
    """A baked file, how to load it, and what baking cost: the same accuracies at each stage."""

    weights: Path
    card: Path
    stages: tuple[Accuracies, ...]
    zeroed: int
    units: int


def bake(
    unlearned: Unlearned,
    forget: Sequence[int],
    out: str | os.PathLike[str] | None = None,
    *,
    threshold: float = 0.3,
    data_root: str | None = None,
    overwrite: bool = False,
    on_checked: Checked | None = None,
) -> Baked:
    """Write one selection into ordinary weights of the base's architecture, and measure them as loaded from the file.

    Args:
        forget: the classes, at least one and not all of them.
        out: default: baked-CLASSES.safetensors in the run folder; a .json beside it says how to load it.
        threshold: gates below it become exactly 0.
        on_checked: called with (test images checked, images in all) before anything is written.

    Raises:
        MemmodError: the file exists, data missing or unusable, or the baked model is no longer of the base's
            architecture.
    """
    wf, base, names = unlearned.wf, unlearned.base, unlearned.base.meta["class_names"]
    check_forgettable(forget, wf.num_classes)
    if not 0 <= threshold < 1:
        raise RunError(f"threshold is {threshold}; gates lie between 0 and 1, so it must be at least 0 and below 1")
    selection, label = set(forget), "-".join(names[c] for c in forget)
    weights = Path(out) if out is not None else unlearned.run.file(f"baked-{slug(label)}.safetensors")
    card = weights.with_suffix(".json")
    if weights.suffix != ".safetensors":
        raise RunError(f"the file {weights} must end in .safetensors")
    existing = [str(path) for path in (weights, card) if path.exists()]
    if existing and not overwrite:
        raise RunError(f"already there: {' and '.join(existing)}; choose another --out, or replace with --overwrite")
    dataset = unlearned.load_data(data_root)
    _check_test(dataset, on_checked)
    test = dataset.test
    x = test.batch(torch.arange(min(len(test), 64)))
    whole = wf.bake(selection)
    model = wf.bake(selection, threshold, "base", x)
    write_state(weights, model, {"memmod": "baked", "forgotten": ", ".join(names[c] for c in forget)})
    rows = [gates[list(forget)].prod(0) for gates in wf.gates().values()]
    zeroed, units = sum(int((row < threshold).sum()) for row in rows), sum(row.numel() for row in rows)
    baked = Baked(weights, card, (), zeroed, units)
    write_json(card, _baked_card(baked, unlearned, forget, threshold))
    loaded = create_model(base.meta["model"], wf.num_classes, tuple(base.meta["input_shape"]))
    loaded.load_state_dict(load_file(weights))
    selections = [tuple(forget)]
    stages = (
        without_gates(base.model, test, selections, wf.num_classes)[0],
        measure(wf, test, selections, method="gated at run time"),
        replace(without_gates(whole, test, selections, wf.num_classes)[0], method="baked"),
        replace(
            without_gates(loaded.eval(), test, selections, wf.num_classes)[0],
            method=f"baked, gates below {threshold:g} zeroed (the file)",
        ),
    )
    baked = replace(baked, stages=stages)
    write_json(card, _baked_card(baked, unlearned, forget, threshold))
    return baked


def check_forgettable(forget: Sequence[int], num_classes: int) -> None:
    """Raise SelectionError where a network without these classes knows all that it knew, or nothing."""
    if not 0 < len(set(forget)) < num_classes:
        raise SelectionError(
            f"baking {len(set(forget))} of {num_classes} classes leaves nothing to forget or nothing to recognise: "
            f"name 1 to {num_classes - 1}"
        )


def _check_test(dataset: Dataset, on_checked: Checked | None) -> None:
    check_classes(f"the test split of {dataset.name}", dataset.test.labels, dataset.class_names)
    dataset.test.check(on_checked)


def _baked_card(baked: Baked, unlearned: Unlearned, forget: Sequence[int], threshold: float) -> dict[str, Any]:
    meta = unlearned.base.meta
    create = f"create_model({meta['model']!r}, {meta['num_classes']}, {tuple(meta['input_shape'])})"
    return {
        "weights": baked.weights.name,
        "load": [
            "from safetensors.torch import load_file",
            "from memmod.zoo import create_model",
            f"model = {create}",
            f"model.load_state_dict(load_file({baked.weights.name!r}))",
            "model.eval()",
        ],
        "model": meta["model"],
        "num_classes": meta["num_classes"],
        "input_shape": meta["input_shape"],
        "class_names": meta["class_names"],
        "forgotten": [{"class": c, "name": meta["class_names"][c]} for c in forget],
        "threshold": threshold,
        "zeroed_gates": baked.zeroed,
        "gates": baked.units,
        "base_sha256": unlearned.wf.base_sha256,
        "test_accuracies": [
            {"stage": stage.method, "forget": stage.acc_forget[0], "retain": stage.acc_retain[0]}
            for stage in baked.stages
        ],
        "versions": versions(),
    }
