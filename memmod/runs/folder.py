"""Run folders: one folder per run, with its settings, its metrics and what it produced."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from memmod.errors import RunError
from memmod.files import sharded_checkpoint
from memmod.files.atomic import write_atomically
from memmod.files.checkpoint import FILE_NAME as CHECKPOINT
from memmod.files.strict_json import Origin, as_json, check, dump, parse

CONFIG = "config.json"
METRICS = "metrics.json"
MEMORY = "memory.safetensors"
SCORECARD = "scorecard.json"
EXPLANATION = "explanation.json"
BASE = "base.safetensors"

T = TypeVar("T")

_FORMAT = "memmod-run-1"
# what a run may write into its folder, and so what --overwrite may delete: nothing else is touched
_OWN_FILES = (CONFIG, METRICS, MEMORY, BASE, "base.json", SCORECARD, EXPLANATION, "history.json", "report.html")
_OWN_PATTERNS = (
    "audits",
    "checkpoint*",
    ".checkpoint*",
    "baked-*.safetensors",
    "baked-*.json",
    *(f".{n}.*" for n in _OWN_FILES),
)
_ADVICE = "mend it, or delete the run folder and run again"
_VERSIONED = ("memmod-torch", "torch", "timm", "torchvision", "numpy", "scikit-learn", "scipy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run's figures depend on."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as readable JSON, whole or not at all; a figure that is not a number becomes null.

    Raises:
        RunError: it is not JSON.
    """
    try:
        content = dump(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise RunError(f"{path} cannot be written as JSON ({error}): it takes finite numbers and UTF-8 text") from error
    write_atomically(path, content)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file strictly. Raises `RunError` when it is missing or not JSON."""
    try:
        content = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}): {_ADVICE}") from None
    return parse(content, Origin(str(path), RunError, _ADVICE))


class RunConfig(msgspec.Struct, frozen=True):
    """What config.json holds; `settings` are checked by what uses them."""

    format: str
    command: str
    settings: dict[str, Any]
    versions: dict[str, str]


class _Settings(msgspec.Struct, Generic[T], frozen=True):
    settings: T


class BestState(msgspec.Struct, frozen=True):
    """The evaluation of the state that a round of unlearning kept."""

    step: Annotated[int, msgspec.Meta(ge=0)]
    acc_forget: Annotated[list[float], msgspec.Meta(min_length=1)]
    mean_retain: float


class UnlearnMetrics(msgspec.Struct, frozen=True):
    """What is read again of the metrics.json of `memmod unlearn`."""

    best: BestState
    base_retain: float
    seconds: float


# The metrics of other commands are for people to read.
_METRICS: dict[str, Any] = {"unlearn": UnlearnMetrics}


@dataclass(frozen=True)
class RunFolder:
    """A folder that belongs to one run of one command.

    `settings` are all options that the run was started with, seeds included, as JSON values. `resumed` is true when
    the folder held an unfinished run of the same settings.
    """

    path: Path
    command: str
    settings: dict[str, Any]
    versions: dict[str, str]
    resumed: bool = False

    @classmethod
    def start(
        cls,
        path: str | os.PathLike[str],
        command: str,
        settings: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> RunFolder:
        """Make the folder of a new run, or enter that of an unfinished one.

        `resume` enters a folder only when it was started by the same command with the same settings; a folder that
        does not exist yet is made, so that the same command line works wherever the run was interrupted. `overwrite`
        deletes what an earlier run of memmod wrote there, and nothing else. Raises `RunError`.
        """
        path = Path(path)
        wanted = as_json(dict(settings), Origin("the settings of a run", RunError, "choose other settings"))
        if resume and overwrite:
            raise RunError("resume and overwrite exclude each other: continue the run, or start it anew")
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file, a run needs a folder: choose another --out")
        leftovers = _entries(path)
        if leftovers and not (resume or overwrite):
            raise RunError(
                f"the run folder {path} already exists: continue an interrupted run with --resume, replace it with "
                "--overwrite, or choose another --out"
            )
        if leftovers:
            old = cls.open(path)
            if overwrite:
                old._clear()
            else:
                old._check_same(command, wanted)
                return cls(path, command, wanted, old.versions, resumed=True)
        run = cls(path, command, wanted, versions())
        document = {"format": _FORMAT, "command": command, "settings": wanted, "versions": run.versions}
        write_json(path / CONFIG, document)
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Open the folder of an earlier run for reading. Raises `RunError` when it is none."""
        path = Path(path)
        if not os.path.isdir(path):
            raise RunError(f"there is no run folder {path}: `memmod train` and `memmod unlearn` make them")
        if not (path / CONFIG).exists():
            raise RunError(f"{path} is not a run folder of memmod: it holds no {CONFIG}; nothing in it was touched")
        found = read_json(path / CONFIG)
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise RunError(f"{path / CONFIG} was not written by memmod (format {_FORMAT}); nothing in it was touched")
        config = check(found, RunConfig, Origin(str(path / CONFIG), RunError, _ADVICE))
        return cls(path, config.command, config.settings, config.versions)

    def settings_as(self, type: type[T]) -> T:
        """The settings as a msgspec Struct. Raises `RunError` with the file, the field and its value."""
        origin = Origin(str(self.path / CONFIG), RunError, _ADVICE)
        return check({"settings": self.settings}, _Settings[type], origin).settings

    def file(self, name: str) -> Path:
        """Path of a file of this run."""
        return self.path / name

    def existing(self, name: str) -> Path:
        """Path of a file that this run must have written already. Raises `RunError`."""
        path = self.path / name
        if not os.path.isfile(path):
            raise RunError(
                f"the run {self.path} ({self.command}) holds no {name}: it did not finish; continue or repeat it"
            )
        return path

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Replace metrics.json."""
        write_json(self.path / METRICS, dict(metrics))

    def metrics(self) -> dict[str, Any]:
        """What metrics.json holds. Raises `RunError` when it is missing or damaged."""
        path = self.existing(METRICS)
        found = read_json(path)
        check(found, _METRICS.get(self.command, dict[str, Any]), Origin(str(path), RunError, _ADVICE))
        return found

    def _check_same(self, command: str, settings: dict[str, Any]) -> None:
        if command != self.command:
            raise RunError(f"{self.path} holds a run of `memmod {self.command}`: `memmod {command}` cannot resume it")
        different = [
            f"{name} was {self.settings.get(name)!r}, now {settings.get(name)!r}"
            for name in sorted(self.settings.keys() | settings.keys())
            if self.settings.get(name) != settings.get(name)
        ]
        if different:
            raise RunError(
                f"the run in {self.path} was started with other settings: {'; '.join(different)}; "
                "resume it with its own settings, or start anew with --overwrite or another --out"
            )

    def _clear(self) -> None:
        # config.json goes last: a folder whose clearing was interrupted is still known as ours
        own = [self.path / name for name in _OWN_FILES if name != CONFIG]
        own += [match for pattern in _OWN_PATTERNS for match in self.path.glob(pattern)]
        for entry in [*own, self.path / CONFIG]:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)


def _entries(path: Path) -> list[Path]:
    """What lies in a folder, without hidden files: an interrupted write may leave one."""
    return [entry for entry in path.iterdir() if not entry.name.startswith(".")] if path.is_dir() else []


def remove_checkpoint(run: RunFolder) -> None:
    """Remove the checkpoint of a finished run, and what a kill left of one that was being written."""
    for path in (run.file(CHECKPOINT), *run.path.glob(f".{CHECKPOINT}.*")):
        path.unlink(missing_ok=True)
    sharded_checkpoint.remove(run.file(sharded_checkpoint.FOLDER_NAME))


def slug(text: str) -> str:
    """A part of a file name, of at most 120 bytes: what is neither letter, digit, dot nor dash becomes a dash."""
    short = re.sub(r"[^\w.-]+", "-", text).encode()[:120].decode(errors="ignore")
    return short.strip("-.") or "unnamed"
