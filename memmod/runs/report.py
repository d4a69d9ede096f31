"""What `memmod report` does: a run folder in, one page about everything that the folder holds out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import torch

from memmod.errors import RunError
from memmod.files.strict_json import Origin, check
from memmod.memory_file import read_memory_file
from memmod.ops import gating
from memmod.report import HeldOut, LayerNote, Memory, Report, Run, Table, write_figures, write_report
from memmod.report.cards import Audit, ClassAccuracies, Comparison, Scorecard
from memmod.report.explanation import read_explanation
from memmod.runs.audits import AUDITS
from memmod.runs.audits import CARD as AUDIT
from memmod.runs.compare import CARD as COMPARISON
from memmod.runs.erase import EraseSettings
from memmod.runs.folder import (
    BASE,
    CONFIG,
    EXPLANATION,
    MEMORY,
    METRICS,
    SCORECARD,
    RunFolder,
    UnlearnMetrics,
    read_json,
    slug,
)
from memmod.runs.restore import UnlearnSettings, restore_unlearned
from memmod.zoo import load_base

PAGE = "report.html"
# As people write the names of the package's own networks.
TITLES = {"resnet": "ResNet", "vgg": "VGG", "vit": "ViT"}

T = TypeVar("T")


class _ErasedCard(msgspec.Struct, frozen=True):
    """What `memmod evaluate` wrote for an erased network."""

    class_names: list[str]
    forget: list[int]
    original: list[float]
    erased: list[float]


class _Measured(msgspec.Struct, frozen=True):
    """What is read of the metrics of `memmod train` and `memmod erase`."""

    class_accuracy: Annotated[list[float | None], msgspec.Meta(min_length=1)] | None = None


class _DemoSettings(msgspec.Struct, frozen=True):
    models: Annotated[list[str], msgspec.Meta(min_length=1)]


@dataclass(frozen=True)
class Written:
    """The page, and the figures that were written as files."""

    page: Path
    figures: tuple[Path, ...]


def report_run(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    base: str | os.PathLike[str] | None = None,
    png: str | os.PathLike[str] | None = None,
    pdf: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    facts: Mapping[str, str] | None = None,
) -> Written:
    """Write the page of a run folder, and its figures as files where folders for them are named.

    Args:
        out: default: report.html in the run folder, where an earlier one is replaced.
        base: the base's folder, if it has moved since.
        png, pdf: folders for the figures.
        overwrite: replace files outside of the run folder.
        facts: more to be told of a run of several networks.

    Raises:
        RunError: it is no run folder, a file in it is damaged, a file is in the way, or vl-convert is not installed.
        MemmodError: memories or weights that are damaged or of another run.
    """
    run = RunFolder.open(folder)
    page = Path(out) if out is not None else run.file(PAGE)
    if page.is_dir():
        raise RunError(f"{page} is a folder: name a file for the page with --out")
    if out is not None and page.exists() and not overwrite:
        raise RunError(f"already there: {page}; choose another --out, or replace with --overwrite")
    report = collect(folder, base)
    report = replace(report, facts={**report.facts, **(facts or {})})
    written: list[Path] = []
    for kind, place in (("png", png), ("pdf", pdf)):
        for shown in report.runs if place is not None else ():
            own = Path(place) / slug(shown.title) if len(report.runs) > 1 else Path(place)
            written += write_figures(shown, own, kind, overwrite=overwrite)
    write_report(report, page)
    return Written(page, tuple(written))


def collect(folder: str | os.PathLike[str], base: str | os.PathLike[str] | None = None) -> Report:
    """Everything that a page shows of a run folder; of a demo, its networks. Raises as `report_run` does."""
    run = RunFolder.open(folder)
    if run.command == "demo":
        models = run.settings_as(_DemoSettings).models
        shown = [_collect(RunFolder.open(run.file(f"{model}-unlearned")), None) for model in models]
        facts = {name: str(run.settings[name]) for name in ("seed",) if name in run.settings} | run.versions
        return Report(f"{len(shown)} networks on {shown[0].data}, each class forgotten in turn", shown, facts)
    found = _collect(run, base)
    without = ""
    if run.command == "erase" and found.by_class is not None:
        without = f" without {', '.join(found.class_names[c] for c in found.by_class.forget)}"
    return Report(f"{found.title} on {found.data}{without}", [found])


def _collect(run: RunFolder, base: str | os.PathLike[str] | None) -> Run:
    model, data = (run.settings.get(name) for name in ("model", "data"))
    named = {
        "model": model if isinstance(model, str) else "a network",
        "data": data if isinstance(data, str) else "its data",
    }
    shown = Run(
        title=TITLES.get(named["model"], named["model"]),
        folder=str(run.path),
        command=run.command,
        class_names=(),
        tables=[Table(f"Settings of memmod {run.command}", run.settings), Table("Versions", run.versions)],
        **named,
    )
    if run.command == "unlearn":
        shown = _unlearned(run, shown, base)
    elif run.command == "erase":
        shown = _erased(run, shown)
    else:
        shown = _plain(run, shown)
    names = shown.class_names or None
    told = read_explanation(run.file(EXPLANATION), names)
    audits = _audits(run, names)
    compared = run.path.resolve().with_name(f"{run.path.resolve().name}-compared") / COMPARISON
    comparison = _card(compared, Comparison, "memmod compare") if run.command == "unlearn" else None
    tables = list(shown.tables)
    if told is not None:
        tables += [
            Table("Settings of memmod explain", told.settings),
            Table("Versions of memmod explain", told.versions),
        ]
    for audit in audits:
        how = {"quick": audit.quick, "threshold": audit.threshold, "seed": audit.seed, "oracles": audit.oracles}
        tables.append(Table(f"Audit of {', '.join(audit.forgotten)}", how | audit.versions))
    if comparison is not None:
        how = {"classes": comparison.classes, "seeds": comparison.seeds, "quick": comparison.quick}
        tables.append(Table("Comparison", how | comparison.versions))
    return replace(
        shown,
        class_names=shown.class_names or (told.class_names if told is not None else ()),
        explanation=told,
        audits=audits,
        comparison=comparison,
        tables=tables,
    )


def _unlearned(run: RunFolder, shown: Run, base: str | os.PathLike[str] | None) -> Run:
    settings = run.settings_as(UnlearnSettings)
    card = _card(run.file(SCORECARD), Scorecard, "memmod evaluate")
    names: Sequence[str] = card.class_names if card is not None else ()
    memories, notes, facts = [], [], {}
    if run.file(MEMORY).exists():
        about, rows = read_memory_file(run.file(MEMORY))
        own = about["class_names"] or [str(c) for c in range(about["num_classes"])]
        if names and list(names) != list(own):
            raise RunError(
                f"{run.file(SCORECARD)} and {run.file(MEMORY)} name different classes: evaluate the run again"
            )
        names, gate = own, about["config"].get("gate", "sigmoid")
        order = {layer: place for place, layer in enumerate(about["layers"])}
        rows = dict(sorted(rows.items(), key=lambda item: order[item[0].rpartition(".")[0]]))
        memories = [Memory(name.removesuffix(".memory"), _gates(memory, gate)) for name, memory in rows.items()]
        facts["memory entries"] = f"{sum(memory.numel() for memory in rows.values()):,}"
        if base is not None or os.path.isdir(settings.base):
            restored = restore_unlearned(run.path, base)
            notes = [LayerNote(row.name, row.action, row.reason) for row in restored.wf.summary().rows]
            facts["parameters of the base"] = f"{sum(p.numel() for p in restored.base.model.parameters()):,}"
        else:
            facts["base"] = f"{settings.base}, which is not there now: --base names another place"
    held_out = None
    if run.file(METRICS).exists():
        metrics = check(run.metrics(), UnlearnMetrics, _origin(run.file(METRICS), "memmod unlearn"))
        held_out = HeldOut(metrics.best.acc_forget, metrics.best.mean_retain, metrics.base_retain)
        if names and len(held_out.acc_forget) != len(names):
            _origin(run.file(METRICS), "memmod unlearn").refuse(
                f"has accuracies of {len(held_out.acc_forget)} classes, and the run has {len(names)}"
            )
        facts["unlearning all classes"] = f"{metrics.seconds:.0f} s"
    place = str(base if base is not None else settings.base)
    return replace(
        shown,
        class_names=tuple(names),
        base=place,
        scorecard=card,
        held_out=held_out,
        memories=memories,
        notes=notes,
        facts=facts,
        tables=[*shown.tables, *_base_tables(Path(place))],
    )


def _gates(memory: torch.Tensor, gate: str) -> Any:
    """The gates `[C, K]` of a memory, whatever the shape of its rows."""
    rows = memory.flatten(1)
    return gating.gates(rows, torch.arange(rows.shape[0]), gate).float().clamp(0, 1).numpy()


def _erased(run: RunFolder, shown: Run) -> Run:
    settings = run.settings_as(EraseSettings)
    shown = _plain(run, shown)
    card = _card(run.file(SCORECARD), _ErasedCard, "memmod evaluate")
    base = Path(str(run.settings.get("base", "")))
    found = shown.by_class
    if card is not None:
        values = {"class_names": card.class_names, "now": card.erased, "original": card.original, "forget": card.forget}
        found = check(values, ClassAccuracies, _origin(run.file(SCORECARD), "memmod evaluate"))
    elif found is not None:
        before = _measured(base / METRICS) if os.path.isfile(base / CONFIG) else None
        same = before is not None and len(before) == len(found.now)
        values = {"class_names": list(found.class_names), "now": found.now, "original": before if same else None}
        found = check(
            values | {"forget": list(settings.forget)}, ClassAccuracies, _origin(run.file(CONFIG), "memmod erase")
        )
    names = tuple(found.class_names) if found is not None else shown.class_names
    return replace(
        shown, class_names=names, base=str(base), by_class=found, tables=[*shown.tables, *_base_tables(base)]
    )


def _plain(run: RunFolder, shown: Run) -> Run:
    """A run whose product is an ordinary network."""
    if not run.file(BASE).exists():
        return shown
    network, meta = load_base(run.path)
    names, now = tuple(meta["class_names"]), _measured(run.file(METRICS))
    found = None
    if now is not None:
        values = {"class_names": list(names), "now": now}
        found = check(values, ClassAccuracies, _origin(run.file(METRICS), f"memmod {run.command}"))
    facts = {"parameters": f"{sum(p.numel() for p in network.parameters()):,}"}
    return replace(shown, class_names=names, by_class=found, facts=facts)


def _measured(path: Path) -> list[float | None] | None:
    """The accuracy of each class in a metrics.json, where there is one."""
    found = _card(path, _Measured, "the command that made it")
    return None if found is None else found.class_accuracy


def _audits(run: RunFolder, class_names: Sequence[str] | None) -> list[Audit]:
    found = []
    for path in sorted(run.file(AUDITS).glob(f"*/{AUDIT}")):
        audit = _card(path, Audit, "memmod audit")
        if class_names is not None and not set(audit.forgotten) <= set(class_names):
            _origin(path, "memmod audit").refuse(
                f"is about {', '.join(audit.forgotten)}, which are not classes of the run"
            )
        found.append(audit)
    return found


def _base_tables(base: Path) -> list[Table]:
    """How the base was trained, where it still lies."""
    if not os.path.isfile(base / CONFIG):
        return []
    run = RunFolder.open(base)
    return [
        Table(f"Settings of the base: memmod {run.command}", run.settings),
        Table("Versions of the base", run.versions),
    ]


def _card(path: Path, kind: type[T], command: str) -> T | None:
    """A JSON file as a msgspec Struct; None where there is none. Raises RunError when it is damaged."""
    if not os.path.isfile(path):
        return None
    return check(read_json(path), kind, _origin(path, command))


def _origin(path: Path, command: str) -> Origin:
    return Origin(str(path), RunError, f"mend it, or delete it and run `{command}` again")
