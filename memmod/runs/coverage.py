"""Tries memmod on the models that people use, each in a process of its own, and writes a table of what it found."""

from __future__ import annotations

import multiprocessing
import platform
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import memmod
from memmod.errors import ModelError, RunError
from memmod.files.atomic import write_atomically
from memmod.files.parts import Parts
from memmod.runs.coverage_models import CLASSES, KINDS, SIDES, Candidate, build, candidates

# What a checked model's process may hold of memory of its own, in GiB.
MEMORY = 10.0
# Seconds that one model may take.
TIMEOUT = 600.0
# Models with more weights are listed, but not tried, in millions.
LARGEST = 100.0
# Where in a model a reason was found: " in stages.0.blocks.1.attn".
PLACE = re.compile(r" in \w+(\.\w+)+")
TITLES = {"timm": "timm: the smallest model of each module", "torchvision": "torchvision: every classification model"}
TITLES |= {"hf": "Hugging Face transformers: image models, from their configuration"}


@dataclass(frozen=True)
class Tried:
    """What was found of one model.

    Args:
        kind, name, family: of the `Candidate`.
        outcome: "passes", "fails" or "left out".
        detail: why it fails or was left out.
        side: of the images in pixels; None: the model's own.
        weights: parameters, in millions.
        layers, gated_share, reasons, seconds, verify_seconds: of the `Check`; of what fails, the processor's seconds.
    """

    kind: str
    name: str
    family: str
    outcome: str
    detail: str = ""
    side: int | None = None
    weights: float = 0.0
    layers: int = 0
    gated_share: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    verify_seconds: float = 0.0


@dataclass(frozen=True)
class CoverageStep:
    """Model `number` of `count` was tried, or found finished."""

    number: int
    count: int
    tried: Tried


def run_coverage(
    out: Path,
    kept: Path,
    *,
    kinds: Sequence[str] = KINDS,
    only: Sequence[str] = (),
    largest: float = LARGEST,
    memory: float = MEMORY,
    timeout: float = TIMEOUT,
    on_step: Callable[[CoverageStep], None] | None = None,
) -> list[Tried]:
    """Try every model of these kinds and write the table.

    A model that fails, takes too long or too much memory, or takes its process down is a row of the table. What passes
    is kept, by the versions of the libraries, and not tried again.

    Args:
        out: the Markdown file.
        kept: folder of models that pass.
        only: names of models; others are left out.
        largest: weights, in millions, above which a model is not tried.
        memory: GiB that a model's process may hold.
        timeout: seconds that a model may take.

    Raises:
        ModelError: an unknown kind or name, or "hf" without transformers.
        RunError: a limit that is not positive.
    """
    for option, value in (("largest", largest), ("memory", memory), ("timeout", timeout)):
        if not value > 0:
            raise RunError(f"{option} is {value:g}; it must be more than 0")
    found = candidates(tuple(kinds))
    unknown = sorted(set(only) - {candidate.name for candidate in found})
    if unknown:
        raise ModelError(f"{', '.join(map(repr, unknown[:8]))} are no models of {', '.join(kinds)} that coverage tries")
    chosen = [candidate for candidate in found if not only or candidate.name in only]
    parts = Parts(kept)
    rows = []
    for number, candidate in enumerate(chosen, 1):
        key = {"versions": versions(), "model": asdict(candidate), "sides": list(SIDES)}
        value = parts.get(key)
        tried = Tried(**value) if value is not None else _in_own_process(candidate, largest, memory, timeout)
        # What fails, or was too large, may not with another memmod or other limits.
        if value is None and tried.outcome == "passes":
            parts.put(key, asdict(tried))
        rows.append(tried)
        if on_step is not None:
            on_step(CoverageStep(number, len(chosen), tried))
    write_atomically(out, as_markdown(rows, kinds).encode())
    return rows


def versions() -> dict[str, str]:
    """What decides what is found."""
    found = {"memmod": memmod.__version__}
    for package in ("torch", "timm", "torchvision", "transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _in_own_process(candidate: Candidate, largest: float, memory: float, timeout: float) -> Tried:
    context = multiprocessing.get_context("forkserver")
    # The server imports them once; each model's process starts as a copy of it.
    context.set_forkserver_preload(["memmod.runs.coverage_check", "timm", "torchvision", "transformers"])
    receiver, sender = context.Pipe(duplex=False)
    start = time.perf_counter()
    process = context.Process(target=_try, args=(sender, candidate, largest, memory, timeout), daemon=True)
    process.start()
    sender.close()
    row: dict[str, Any] = {"kind": candidate.kind, "name": candidate.name, "family": candidate.family}
    try:
        if not receiver.poll(timeout):
            return Tried(**row, outcome="fails", detail=f"took more than {timeout:g} s", seconds=timeout)
        return Tried(**row, **receiver.recv())
    except EOFError:
        process.join()
        died = f"its process ended with code {process.exitcode}"
        return Tried(**row, outcome="fails", detail=died, seconds=time.perf_counter() - start)
    finally:
        process.kill()
        process.join()
        receiver.close()


def _try(sender: Connection, candidate: Candidate, largest: float, memory: float, timeout: float) -> None:
    import logging
    import resource
    import signal

    import torch

    # It ends even where the process that waits for it was killed.
    signal.alarm(int(timeout) + 10)

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 2**30),) * 2)
    sender.send(_try_sides(candidate, largest))


def _try_sides(candidate: Candidate, largest: float) -> dict[str, Any]:
    """What is found with small images, or else, where the model does not take them, with its own size."""
    from memmod.runs.coverage_check import check_model

    start = time.process_time()
    result: dict[str, Any] = {}
    for side in (*SIDES, None):
        try:
            try:
                model, example = build(candidate, side)
            except ImportError as error:
                return {"outcome": "left out", "detail": str(error).strip().partition("\n")[0]}
            weights = sum(parameter.numel() for parameter in model.parameters()) / 1e6
            if weights > largest:
                return {"outcome": "left out", "detail": f"more than {largest:g} M weights", "weights": weights}
            check = check_model(model, example, None if candidate.output is None else CLASSES, candidate.config)
        except Exception as error:
            detail = str(error).partition("\n")[0]
            result = {"outcome": "fails", "detail": detail or type(error).__name__, "side": side}
            continue
        return {"outcome": "passes", "side": side, "weights": weights, **asdict(check)}
    return result | {"seconds": time.process_time() - start}


def as_markdown(rows: Sequence[Tried], kinds: Sequence[str]) -> str:
    """The table as docs/coverage.md."""
    used = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = [
        "# Models that memmod was tried on",
        "",
        f"Written by `memmod coverage --kinds {','.join(kinds)}` with {used}, Python {platform.python_version()}, in "
        f"{sum(row.seconds for row in rows) / 60:.0f} minutes on one core.",
        "",
        "Each model has random weights and is tried in a process of its own: its layers are gated; `verify()` "
        "proves that every gate acts, on its own sample alone; with nothing forgotten the output is the base's; a "
        "step of training moves the memories of the selected classes and nothing else; the baked model equals the "
        "gated one to 1e-9 in fp64. Images have a side of 96 pixels where the model takes them, else its own size. "
        "The gated share is that of the weights of all layers and of what acts as one, without the classifier head "
        "and biases (`summary().gated_share`).",
        "",
        "| models | tried | pass | gated share: median | mean | least |",
        "|---|---|---|---|---|---|",
    ]
    for kind in kinds:
        lines.append(_totals(TITLES[kind], [row for row in rows if row.kind == kind]))
    for kind in kinds:
        own = [row for row in rows if row.kind == kind]
        lines += ["", f"## {TITLES[kind]}", "", "| model | of | weights | side | layers | gated | not gated, and why |"]
        lines += ["|---|---|---|---|---|---|---|", *map(_row, own)]
    return "\n".join(lines) + "\n"


def _totals(title: str, rows: Sequence[Tried]) -> str:
    tried = [row for row in rows if row.outcome != "left out"]
    shares = [row.gated_share for row in tried if row.outcome == "passes"]
    figures = [statistics.median(shares), statistics.fmean(shares), min(shares)] if shares else []
    cells = [title, len(tried), len(shares), *(f"{figure:.3f}" for figure in figures or (0.0, 0.0, 0.0))]
    return f"| {' | '.join(map(str, cells))} |"


def _row(row: Tried) -> str:
    if row.outcome != "passes":
        cells = [row.name, row.family, f"{row.weights:.1f} M" if row.weights else "", "", "", "", f"{row.outcome}: "]
        return f"| {' | '.join(cells)}{_cell(row.detail)} |"
    kinds: Counter[str] = Counter()
    for reason, count in row.reasons.items():
        kinds[PLACE.sub("", reason)] += count
    why = "; ".join(f"{count} × {reason}" for reason, count in kinds.most_common())
    side = "own" if row.side is None else str(row.side)
    cells = [row.name, row.family, f"{row.weights:.1f} M", side, str(row.layers), f"{row.gated_share:.3f}", _cell(why)]
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    short = text if len(text) <= 400 else f"{text[:400]}…"
    return short.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
