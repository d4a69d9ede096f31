"""Run folders read back: the base, the data and the modulated model of an earlier run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from torch import nn

from memmod.data import Dataset, check_class_names, load_data
from memmod.errors import DataError, MemoryFileError, RunError
from memmod.memory_file import read_card
from memmod.model import ModulatedModel
from memmod.runs.folder import CONFIG, MEMORY, RunFolder
from memmod.zoo import create_model, load_base


class DataSettings(msgspec.Struct, frozen=True):
    """What every run records of its data."""

    data: str
    data_root: str | None
    image_size: Annotated[int, msgspec.Meta(ge=1, le=2**16)] | None


class TrainSettings(DataSettings, frozen=True):
    """What is read again of the settings of `memmod train`."""

    model: str
    epochs: Annotated[int, msgspec.Meta(ge=0)]


class UnlearnSettings(DataSettings, frozen=True):
    """What is read again of the settings of `memmod unlearn`, beside the fields of `UnlearnConfig`."""

    base: str
    skip: tuple[str, ...]


@dataclass(frozen=True)
class Base:
    """A trained base: the network in eval mode, what was recorded of it, and the options its data were loaded with."""

    folder: Path
    model: nn.Module
    meta: dict[str, Any]
    data_options: dict[str, Any]

    def fresh(self, seed: int) -> nn.Module:
        """A network of its architecture with random weights."""
        return create_model(self.meta["model"], self.meta["num_classes"], tuple(self.meta["input_shape"]), False, seed)

    def load_data(self, spec: str | None = None, **options: Any) -> Dataset:
        """The data set it was trained on, or another with the same classes; None leaves an option as it was.

        Raises:
            DataError: missing, damaged, or of other classes.
        """
        given = {name: value for name, value in options.items() if value is not None}
        spec = self.meta["data"] if spec is None else spec
        try:
            dataset = load_data(spec, **{**self.data_options, **given})
        except (OSError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"the data set {spec!r} cannot be read ({error}): name another") from error
        check_class_names(dataset, self.meta["class_names"])
        return dataset


def restore_base(folder: str | os.PathLike[str]) -> Base:
    """Load what `memmod train` wrote to `folder`.

    Raises:
        MemmodError: there is none, it is damaged, or not finished.
    """
    model, meta = load_base(folder)
    run = RunFolder.open(folder)
    if run.command != "train":
        raise RunError(f"{folder} holds a run of `memmod {run.command}`, not a base: name one of `memmod train`")
    settings = run.settings_as(TrainSettings)
    # The epochs of weights that were taken as they are stand in the settings alone.
    recorded = {"model": meta["model"], **meta.get("training", {})}
    compared = recorded.keys() & run.settings.keys() - ({"epochs"} if settings.epochs == 0 else set())
    _check_same_run(f"the base in {folder}", {name: recorded[name] for name in compared}, run)
    meta.setdefault("data", settings.data)
    return Base(Path(folder), model, meta, {"root": settings.data_root, "image_size": settings.image_size})


@dataclass(frozen=True)
class Unlearned:
    """What `memmod unlearn` wrote: its run, the base, and the modulated model with its memories."""

    run: RunFolder
    base: Base
    wf: ModulatedModel

    def load_data(self, data_root: str | None = None) -> Dataset:
        """The data set it was unlearned with.

        Raises:
            DataError: missing, damaged, or of other classes or another shape than the memories were trained with.
        """
        settings = self.run.settings
        root, size = data_root or settings["data_root"], settings["image_size"]
        dataset = self.base.load_data(settings["data"], root=root, image_size=size)
        if tuple(dataset.input_shape) != tuple(self.wf.input_shape):
            raise DataError(
                f"the data set {dataset.name} holds images of shape {tuple(dataset.input_shape)}, but the memories in "
                f"{self.run.path} were trained with {tuple(self.wf.input_shape)}: mend `data` in {CONFIG}"
            )
        return dataset


def restore_unlearned(folder: str | os.PathLike[str], base: str | os.PathLike[str] | None = None) -> Unlearned:
    """Load what `memmod unlearn` wrote to `folder`; `base` where the base has moved since.

    Raises:
        MemmodError: it is no such run, is damaged or not finished, its files are of different runs, or the base is
            another.
    """
    run = RunFolder.open(folder)
    if run.command != "unlearn":
        raise RunError(
            f"{folder} holds a run of `memmod {run.command}`, without memories: name one of `memmod unlearn`"
        )
    settings = run.settings_as(UnlearnSettings)
    memory = run.existing(MEMORY)
    card = read_card(memory)
    recorded = {"skip": card["config"].get("skip")}
    if isinstance(card.get("unlearning"), dict):
        recorded.update(card["unlearning"])
    _check_same_run(f"the memories in {memory}", recorded, run)
    if base is None and not os.path.isdir(settings.base):
        raise RunError(
            f"the base {settings.base!r} that {run.file(CONFIG)} names is not there: pass --base, its folder"
        )
    found = restore_base(base or settings.base)
    if card["class_names"] is not None and card["class_names"] != found.meta["class_names"]:
        raise MemoryFileError(
            f"{memory} names other classes than the base in {found.folder}: take an undamaged copy of either"
        )
    return Unlearned(run, found, ModulatedModel.from_file(found.model, memory))


def _check_same_run(what: str, recorded: dict[str, Any], run: RunFolder) -> None:
    """Compare what a file records of its making with the settings of the run in whose folder it lies."""
    different = [
        f"{name} was {value!r}, but is {run.settings.get(name)!r} in {CONFIG}"
        for name, value in sorted(recorded.items())
        if run.settings.get(name) != value
    ]
    if different:
        raise RunError(
            f"{what} and {run.file(CONFIG)} are not of one run: {'; '.join(different)}; put the file of this run back, "
            "or run again with --overwrite"
        )
