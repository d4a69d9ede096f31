"""Run folders read back: the base, the data and the modulated model of an earlier run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from memmod.data import Dataset, check_class_names, load_data
from memmod.errors import RunError
from memmod.model import ModulatedModel
from memmod.runs import MEMORY, RunFolder
from memmod.zoo import load_base

if TYPE_CHECKING:
    import os


@dataclass(frozen=True)
class Base:
    """A trained base: the network in eval mode, what was recorded of it, and the options its data were loaded with."""

    folder: Path
    model: nn.Module
    meta: dict[str, Any]
    data_options: dict[str, Any]

    def load_data(self, spec: str | None = None, **options: Any) -> Dataset:
        """The data set it was trained on, or another with the same classes; None leaves an option as it was.

        Raises:
            DataError: missing, damaged, or of other classes.
        """
        given = {name: value for name, value in options.items() if value is not None}
        dataset = load_data(spec or self.meta["data"], **{**self.data_options, **given})
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
    settings = run.settings
    options = {"root": settings["data_root"], "image_size": settings["image_size"]}
    return Base(Path(folder), model, meta, options)


@dataclass(frozen=True)
class Unlearned:
    """What `memmod unlearn` wrote: its run, the base, and the modulated model with its memories."""

    run: RunFolder
    base: Base
    wf: ModulatedModel

    def load_data(self, data_root: str | None = None) -> Dataset:
        """The data set it was unlearned with."""
        settings = self.run.settings
        root, size = data_root or settings["data_root"], settings["image_size"]
        return self.base.load_data(settings["data"], root=root, image_size=size)


def restore_unlearned(folder: str | os.PathLike[str], base: str | os.PathLike[str] | None = None) -> Unlearned:
    """Load what `memmod unlearn` wrote to `folder`; `base` where the base has moved since.

    Raises:
        MemmodError: it is no such run, is not finished, or the base is another.
    """
    run = RunFolder.open(folder)
    if run.command != "unlearn":
        raise RunError(
            f"{folder} holds a run of `memmod {run.command}`, without memories: name one of `memmod unlearn`"
        )
    memory = run.existing(MEMORY)
    found = restore_base(base or run.settings["base"])
    return Unlearned(run, found, ModulatedModel.from_file(found.model, memory))
