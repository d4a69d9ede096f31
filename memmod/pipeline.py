"""What the commands do, one function each: run folders in, run folders out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file

from memmod.data import Dataset, load_data
from memmod.errors import RunError, SelectionError
from memmod.evaluation import Accuracies, Scorecard, restandardised, scorecard, without_gates
from memmod.evaluation import evaluate as measure
from memmod.export import in_base_architecture, write_state
from memmod.model import ModulateConfig, modulate
from memmod.restore import Base, Unlearned, restore_base, restore_unlearned
from memmod.runs import MEMORY, METRICS, RunFolder, versions, write_json
from memmod.unlearning import Trainer, preset
from memmod.unlearning.checkpoint import FILE_NAME as CHECKPOINT
from memmod.zoo import TrainConfig, accuracies, base_meta, create_model, default_training, save_base, train_model

SCORECARD = "scorecard.json"
# A step of the small ResNet on 28 × 28 images takes 0.14 s of one core in channels_last, 0.27 s in NCHW.
LAYOUT = torch.channels_last

Progress = Callable[[int, int, float], None]


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
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Base:
    """Train a base and keep it in the run folder `out`.

    Args:
        changes: fields of `TrainConfig` that differ from the defaults for this model and data; epochs 0 keeps the
            pretrained weights as they are.

    Raises:
        MemmodError: data missing, unknown model, existing run folder, a loss that is not finite.
    """
    changes = dict(changes or {})
    untrained = changes.get("epochs") == 0
    if untrained and not pretrained:
        raise RunError("epochs is 0, which leaves random weights: train for at least 1, or start from --pretrained")
    dataset = options.load()
    config = default_training(model, dataset)
    config = TrainConfig(**{**asdict(config), **changes, **({"epochs": config.epochs} if untrained else {})})
    network = create_model(model, dataset.num_classes, dataset.input_shape, pretrained, config.seed)
    recorded = {"model": model, "pretrained": pretrained, **asdict(config), **({"epochs": 0} if untrained else {})}
    run = RunFolder.start(out, "train", {**options.settings(), **recorded}, overwrite=overwrite)
    if untrained:
        accuracy, by_class = accuracies(network.eval(), dataset.test, dataset.num_classes)
        metrics = {"accuracy": accuracy, "class_accuracy": by_class}
    else:
        metrics = train_model(network, dataset, config, progress)
    run.write_metrics(metrics)
    save_base(run.path, network, base_meta(model, dataset, config, metrics))
    return restore_base(run.path)


@dataclass(frozen=True)
class UnlearnOptions:
    """How to unlearn: a preset, the fields of `UnlearnConfig` that differ from it, and layers to leave alone."""

    preset: str = "default"
    changes: dict[str, Any] = field(default_factory=dict)
    skip: tuple[str, ...] = ()
    device: str = "cpu"


def unlearn(
    base: Base,
    out: str | os.PathLike[str],
    options: UnlearnOptions | None = None,
    *,
    data: DataOptions | None = None,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> Unlearned:
    """Train the memories of all classes of a base in one round, and keep them in the run folder `out`.

    Args:
        data: default: what the base was trained on.
        resume: go on from the checkpoint of an interrupted run of the same settings, or start where there is none. A
            finished run is returned as it is.

    Raises:
        MemmodError: data or base missing, existing run folder, other settings than the run to resume, a loss that is
            not finite (the best state so far is kept).
    """
    options = options or UnlearnOptions()
    device = usable_device(options.device)
    wanted = data or DataOptions(base.meta["data"])
    dataset = base.load_data(
        wanted.data, root=wanted.root, image_size=wanted.image_size, download=wanted.download or None
    )
    example = dataset.train.batch(torch.arange(2))
    wf = modulate(
        base.model, dataset.num_classes, example, ModulateConfig(skip=options.skip), class_names=dataset.class_names
    )
    wf.to(device, memory_format=LAYOUT)
    config = preset(options.preset, wf, **options.changes)
    settings = {
        **wanted.settings(),
        "base": str(base.folder),
        "model": base.meta["model"],
        "skip": list(options.skip),
        "device": options.device,
        "preset": options.preset,
        **config.to_dict(),
    }
    run = RunFolder.start(out, "unlearn", settings, resume=resume, overwrite=overwrite)
    if run.resumed and run.file(METRICS).exists():
        return restore_unlearned(run.path, base.folder)
    wf.verify(example.to(device))
    trainer = Trainer(wf, dataset, config, run.path, console=console)
    result = trainer.fit(resume=resume)
    card = {"unlearning": config.to_dict(), "seed": config.seed, "data": dataset.name, "model": base.meta["model"]}
    wf.save_memory(run.file(MEMORY), {**card, "metrics": result.best.to_dict()})
    run.write_metrics(result.to_dict())
    run.file(CHECKPOINT).unlink(missing_ok=True)
    return Unlearned(run, base, wf)


def usable_device(name: str) -> torch.device:
    """A device by name. Raises RunError where there is none such."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"the device {name!r} cannot be used ({reason}): choose 'cpu', or 'cuda' with a GPU") from None
    return device


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
) -> Evaluation:
    """Measure an unlearned run on the test split of its data, beside the controls, and record it in the run folder.

    Raises:
        MemmodError: the device cannot be used, or a class has no test images.
    """
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
) -> Baked:
    """Write one selection into ordinary weights of the base's architecture, and measure them as loaded from the file.

    Args:
        forget: the classes, at least one and not all of them.
        out: default: baked-CLASSES.safetensors in the run folder; a .json beside it says how to load it.
        threshold: gates below it become exactly 0.

    Raises:
        MemmodError: the file exists, data missing, or the baked model is no longer of the base's architecture.
    """
    wf, base, names = unlearned.wf, unlearned.base, unlearned.base.meta["class_names"]
    if not 0 < len(set(forget)) < wf.num_classes:
        raise SelectionError(
            f"baking {len(set(forget))} of {wf.num_classes} classes leaves nothing to forget or nothing to recognise: "
            f"name 1 to {wf.num_classes - 1}"
        )
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
    test = unlearned.load_data(data_root).test
    x = test.batch(torch.arange(min(len(test), 64)))
    whole = wf.bake(selection)
    model = in_base_architecture(wf, wf.bake(selection, threshold), base.model, x)
    write_state(weights, model, {"memmod": "baked", "forgotten": ", ".join(names[c] for c in forget)})
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
    rows = [gates[list(forget)].prod(0) for gates in wf.gates().values()]
    zeroed, units = sum(int((row < threshold).sum()) for row in rows), sum(row.numel() for row in rows)
    baked = Baked(weights, card, stages, zeroed, units)
    write_json(card, _baked_card(baked, unlearned, forget, threshold))
    return baked


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


def slug(text: str) -> str:
    """A file name's part of any text: what is neither letter, digit, dot nor dash becomes a dash."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "unnamed"
