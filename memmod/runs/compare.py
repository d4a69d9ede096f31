"""What `memmod compare` does: runs and other methods side by side, class by class, against the same oracles."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from memmod.data import Dataset
from memmod.errors import MemmodError, ModelError, RunError
from memmod.evaluation.attacks.attack import Case, Subject
from memmod.evaluation.attacks.probes import recall
from memmod.evaluation.audit.card import markdown_table, number
from memmod.evaluation.audit.outputs import ACCURACY, OUTPUTS
from memmod.evaluation.features import PENULTIMATE
from memmod.files.atomic import write_atomically
from memmod.files.parts import Parts
from memmod.files.state_hash import state_sha256
from memmod.runs.audits import PARTS, AuditOptions, baked_network, data_hash, make_case
from memmod.runs.folder import MEMORY, versions, write_json
from memmod.runs.kept import TrainingStep
from memmod.runs.oracles import base_training, oracle_folder, oracle_seeds, retrain
from memmod.runs.restore import Base, Unlearned
from memmod.training import LAYOUT
from memmod.unlearning.baselines import METHODS, Diverged, ForgetTask, Method, get_method, tune, unlearn_with

VERSION = 1
TABLE, CARD = "comparison.md", "comparison.json"
DEFAULTS, TUNED = "published defaults", "tuned"
HEADINGS = (
    "method",
    "settings",
    "Acc_f",
    "worst",
    "Acc_r",
    "total variation",
    "probe excess",
    "seconds",
    "tuning seconds",
    "bytes",
)


@dataclass(frozen=True)
class CompareOptions:
    """What to compare, and how.

    Args:
        methods: names of `METHODS`.
        tuned: also with settings chosen on held-out training images.
        tune_on: the classes whose forgetting chooses a method's settings, for all classes; None: each class its own.
        seeds: oracles behind each distance, at least 1.
        quick: probes on fewer images.
        threshold: gates of baked networks below it are exactly 0.
        seed: of every draw.
        oracles: where oracles are kept; default: beside the base.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    tuned: bool = True
    tune_on: tuple[int, ...] | None = None
    seeds: int = 2
    quick: bool = False
    threshold: float = 0.3
    seed: int = 0
    oracles: Path | None = None

    def __post_init__(self) -> None:
        for name in self.methods:
            get_method(name)
        if self.seeds < 1:
            raise RunError(f"seeds is {self.seeds}; a distance to retrained networks needs at least 1")


@dataclass(frozen=True)
class Entry:
    """One network that forgot one class, or why there is none.

    Args:
        c: the class.
        figures: Acc_f, Acc_r, total variation and probe excess to the oracles.
        seconds: of unlearning this class; nan where one round served all.
        tuning_seconds: of the search for its settings.
        bytes: what has to be kept for this class beside the base.
        config: the settings, as JSON values.
        failed: why there are no figures.
    """

    c: int
    figures: dict[str, float] = field(default_factory=dict)
    seconds: float = math.nan
    tuning_seconds: float = 0.0
    bytes: float = math.nan
    config: dict[str, Any] = field(default_factory=dict)
    failed: str | None = None


@dataclass(frozen=True)
class Line:
    """A method with one choice of settings, over all classes.

    `shared_seconds`, `shared_bytes` and `shared_tuning_seconds` are of what serves all classes at once: one round, one
    file, one search.
    """

    method: str
    settings: str
    entries: tuple[Entry, ...]
    shared_seconds: float = 0.0
    shared_bytes: float = 0.0
    shared_tuning_seconds: float = 0.0

    def mean(self, figure: str) -> float:
        """Over the classes that have it."""
        values = [entry.figures[figure] for entry in self.entries if entry.failed is None]
        return math.fsum(values) / len(values) if values else math.nan

    @property
    def worst(self) -> float:
        """The highest accuracy left on a forgotten class."""
        return max((entry.figures["Acc_f"] for entry in self.entries if entry.failed is None), default=math.nan)

    @property
    def seconds(self) -> float:
        return self.shared_seconds + math.fsum(e.seconds for e in self.entries if not math.isnan(e.seconds))

    @property
    def tuning_seconds(self) -> float:
        return self.shared_tuning_seconds + math.fsum(entry.tuning_seconds for entry in self.entries)

    @property
    def bytes(self) -> float:
        return self.shared_bytes + math.fsum(e.bytes for e in self.entries if not math.isnan(e.bytes))

    @property
    def failed(self) -> tuple[str, ...]:
        """Why classes have no figures."""
        return tuple(entry.failed for entry in self.entries if entry.failed is not None)

    def cells(self) -> tuple[str, ...]:
        """As `HEADINGS` calls them."""
        failed = f" ({len(self.failed)} of {len(self.entries)} classes failed)" if self.failed else ""
        return (
            self.method,
            f"{self.settings}{failed}",
            number(self.mean("Acc_f")),
            number(self.worst),
            number(self.mean("Acc_r")),
            number(self.mean("total variation")),
            f"{self.mean('probe excess'):+.3f}",
            f"{self.seconds:.0f}",
            f"{self.tuning_seconds:.0f}",
            f"{self.bytes:.0f}",
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "method": self.method,
            "settings": self.settings,
            "seconds": self.seconds,
            "tuning_seconds": self.tuning_seconds,
            "bytes": self.bytes,
            "classes": [asdict(entry) for entry in self.entries],
        }


@dataclass(frozen=True)
class Step:
    """One network done: `part` of `parts`, and what it was."""

    part: int
    parts: int
    method: str
    class_name: str


@dataclass(frozen=True)
class Comparison:
    """Every line, and the folder that holds them."""

    folder: Path
    lines: tuple[Line, ...]


def compare(
    runs: Sequence[Unlearned],
    forget: Sequence[int],
    dataset: Dataset,
    out: str | os.PathLike[str],
    options: CompareOptions | None = None,
    *,
    on_oracle: Callable[[TrainingStep], None] | None = None,
    on_step: Callable[[Step], None] = lambda _step: None,
) -> Comparison:
    """Put runs of one base and other methods side by side, each class forgotten by itself, and write the table.

    Oracles, and every network's figures, are kept by content: a call that was interrupted goes on where it was.

    Args:
        runs: at least one; all of the same base.
        forget: the classes.
        out: folder of comparison.json and comparison.md.
        on_step: called after each network.

    Raises:
        ModelError: runs of different bases.
        MemmodError: as `retrain`.
    """
    options = options or CompareOptions()
    base = runs[0].base
    _check_one_base(runs)
    oracles = {
        c: tuple(
            oracle.network
            for oracle in retrain(
                base, (c,), oracle_seeds(base, options.seeds), dataset, options.oracles, progress=on_oracle
            )
        )
        for c in forget
    }
    for network in (base.model, *(run.wf for run in runs), *(oracle for found in oracles.values() for oracle in found)):
        network.to(memory_format=LAYOUT)
    parts = Parts((options.oracles or oracle_folder(base)) / PARTS)
    bench = _Workbench(base, dataset, oracles, options, parts, data_hash(dataset), runs[0].wf.config.logits)
    kinds = (DEFAULTS, TUNED) if options.tuned else (DEFAULTS,)
    chosen = [
        (get_method(name), kind)
        for name in options.methods
        for kind in kinds
        if kind == DEFAULTS or get_method(name).grid
    ]
    steps, done = len(forget) * (len(runs) + len(chosen)), 0

    def told(method: str, c: int) -> None:
        nonlocal done
        done += 1
        on_step(Step(done, steps, method, dataset.class_names[c]))

    lines = []
    for run in runs:
        entries = []
        for c in forget:
            entries.append(bench.of_run(run, c))
            told("memmod", c)
        name = "memmod" if len(runs) == 1 else f"memmod, {run.run.path.name}"
        preset = str(run.run.settings.get("preset", ""))
        seconds, size = float(run.run.metrics()["seconds"]), float(run.run.existing(MEMORY).stat().st_size)
        lines.append(Line(name, f"preset {preset}, one round", tuple(entries), seconds, size))
    for method, kind in chosen:
        entries = []
        for c in forget:
            entries.append(bench.of_method(method, kind, c))
            told(method.name, c)
        shared = bench.shared_search(method)["seconds"] if kind == TUNED and options.tune_on else 0.0
        settings = kind if method.grid else "no settings"
        lines.append(Line(method.name, settings, tuple(entries), shared_tuning_seconds=shared))
    comparison = Comparison(Path(out), tuple(lines))
    _write(comparison, runs, forget, dataset, options)
    return comparison


def _check_one_base(runs: Sequence[Unlearned]) -> None:
    for run in runs[1:]:
        if run.wf.base_sha256 != runs[0].wf.base_sha256:
            raise ModelError(
                f"{run.run.path} and {runs[0].run.path} are runs of different bases: compare runs of one base, which "
                "have the same oracles"
            )


@dataclass
class _Workbench:
    base: Base
    dataset: Dataset
    oracles: dict[int, tuple[nn.Module, ...]]
    options: CompareOptions
    parts: Parts
    data: str
    logits_path: str | None

    def of_run(self, run: Unlearned, c: int) -> Entry:
        network = baked_network(run, (c,), self.dataset, self.options.threshold)
        key = self._key("memmod", c) | {"network": state_sha256(network)}
        return self._kept(key, lambda: Entry(c, self._figures(network, c)))

    def of_method(self, method: Method, kind: str, c: int) -> Entry:
        key = self._key(method.name, c) | {"kind": kind, "defaults": asdict(method.config())}
        if kind == TUNED:
            key |= self._search(method)
        return self._kept(key, lambda: self._measured(method, kind, c))

    def _measured(self, method: Method, kind: str, c: int) -> Entry:
        task = self._task(c)
        seconds = 0.0
        try:
            config = method.config()
            if kind == TUNED and self.options.tune_on:
                found = self.shared_search(method)
                if found["failed"] is not None:
                    raise Diverged(found["failed"])
                config = method.config(**found["config"])
            elif kind == TUNED:
                start = time.monotonic()
                config = tune(method, task, seed=self.options.seed).config
                seconds = time.monotonic() - start
            outcome = unlearn_with(method, task, config)
        except (Diverged, ModelError) as error:
            # One method that diverges, or does not know such networks, must not cost the others.
            return Entry(c, tuning_seconds=seconds, failed=str(error))
        figures = self._figures(outcome.network, c)
        return Entry(c, figures, outcome.seconds, seconds, float(outcome.bytes), asdict(config))

    def _search(self, method: Method) -> dict[str, Any]:
        """What decides which settings are chosen."""
        grid = {name: list(values) for name, values in method.grid.items()}
        return {"grid": grid} | ({"tuned on": list(self.options.tune_on)} if self.options.tune_on else {})

    def shared_search(self, method: Method) -> dict[str, Any]:
        """The settings chosen for all classes and the seconds that took; or why there are none."""
        key = self._key(f"settings of {method.name}", -1) | self._search(method)
        stored = self.parts.get(key)
        if stored is None:
            start, stored = time.monotonic(), {"config": None, "failed": None}
            try:
                tasks = [self._task(c) for c in self.options.tune_on]
                stored["config"] = asdict(tune(method, *tasks, seed=self.options.seed).config)
            except (Diverged, ModelError) as error:
                stored["failed"] = str(error)
            except MemmodError as error:
                raise RunError(f"settings of {method.name}: {error}") from error
            stored["seconds"] = time.monotonic() - start
            self.parts.put(key, stored)
        return stored

    def _task(self, c: int) -> ForgetTask:
        train = self.dataset.train
        own = train.labels == c
        return ForgetTask(
            network=self.base.model,
            retain=train.subset((~own).nonzero().flatten()),
            forget=train.subset(own.nonzero().flatten()),
            classes=(c,),
            num_classes=self.dataset.num_classes,
            training=base_training(self.base),
            seed=self.options.seed,
            logits_path=self.logits_path,
        )

    def _case(self, c: int, oracles: tuple[nn.Module, ...]) -> Case:
        options = AuditOptions(quick=self.options.quick, seed=self.options.seed, threshold=self.options.threshold)
        return make_case(self.base, (c,), self.dataset, oracles, options, self.logits_path)

    def _figures(self, network: nn.Module, c: int) -> dict[str, float]:
        case, subject = self._case(c, self.oracles[c]), Subject("", network)
        with torch.random.fork_rng(devices=[]):
            accuracy = ACCURACY.run(subject, case)
            outputs = OUTPUTS.run(subject, case)
            probe = recall(network, case, PENULTIMATE)
        return {
            "Acc_f": accuracy["Acc_f"].value,
            "Acc_r": accuracy["Acc_r"].value,
            "total variation": outputs["total variation"].value,
            "probe excess": probe - self._oracle_probe(c),
        }

    def _oracle_probe(self, c: int) -> float:
        """The mean recall of the class by probes of the oracles' features."""
        hashes = [state_sha256(oracle) for oracle in self.oracles[c]]

        def measure() -> Entry:
            case = self._case(c, self.oracles[c])
            values = [recall(oracle, case, PENULTIMATE) for oracle in self.oracles[c]]
            return Entry(c, {"probe": math.fsum(values) / len(values)})

        return self._kept(self._key("oracle probe", c) | {"networks": hashes}, measure).figures["probe"]

    def _key(self, what: str, c: int) -> dict[str, Any]:
        return {
            "comparison": VERSION,
            "what": what,
            "class": c,
            "base": state_sha256(self.base.model),
            "oracles": [state_sha256(oracle) for oracle in self.oracles.get(c, ())],
            "data": self.data,
            "seed": self.options.seed,
            "quick": self.options.quick,
            "torch": torch.__version__,
        }

    def _kept(self, key: dict[str, Any], measure: Callable[[], Entry]) -> Entry:
        stored = self.parts.get(key)
        if stored is None:
            try:
                stored = asdict(measure())
            except MemmodError as error:
                raise RunError(f"{key['what']}, class {key['class']}: {error}") from error
            self.parts.put(key, stored)
        numbers = ("seconds", "tuning_seconds", "bytes")
        return Entry(**{key: math.nan if value is None and key in numbers else value for key, value in stored.items()})


def _write(
    comparison: Comparison,
    runs: Sequence[Unlearned],
    forget: Sequence[int],
    dataset: Dataset,
    options: CompareOptions,
) -> None:
    names = [dataset.class_names[c] for c in forget]
    settings = {
        "base": runs[0].base.folder.name,
        "runs": [run.run.path.name for run in runs],
        "data": dataset.name,
        "classes": names,
        "tuned on": None if options.tune_on is None else [dataset.class_names[c] for c in options.tune_on],
        "seeds": options.seeds,
        "seed": options.seed,
        "quick": options.quick,
        "papers": {name: METHODS[name].paper for name in options.methods},
        "versions": versions(),
    }
    write_json(comparison.folder / CARD, {**settings, "lines": [line.to_dict() for line in comparison.lines]})
    searched = ""
    if options.tuned:
        tuned_on = "each class" if options.tune_on is None else ", ".join(settings["tuned on"])
        searched = f" Tuned settings were chosen on held-out training images of {tuned_on}."
    text = (
        f"# Comparison on {dataset.name}\n\n"
        f"{runs[0].base.meta['model']}, each of {', '.join(names)} forgotten by itself; means over these classes. "
        f"Total variation and probe excess are to {options.seeds} networks retrained without the class. Seconds and "
        f"bytes are sums over the classes.{searched}\n\n"
        f"{markdown_table(HEADINGS, [line.cells() for line in comparison.lines])}\n"
    )
    for line in comparison.lines:
        if line.failed:
            text += f"\n{line.method}, {line.settings}: {'; '.join(dict.fromkeys(line.failed))}\n"
    write_atomically(comparison.folder / TABLE, text.encode())
