"""Run folders as files that other programs run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memmod import export
from memmod.errors import RunError, SelectionError
from memmod.export import Exported
from memmod.runs.commands import check_forgettable
from memmod.runs.folder import slug
from memmod.runs.restore import Unlearned

FORMATS = {"onnx": ".onnx", "safetensors": ".safetensors", "torch-export": ".pt2"}
# The recipe's, where classes are forgotten for good.
THRESHOLD = 0.3


@dataclass(frozen=True)
class ExportOptions:
    """What to write: a format of `FORMATS`, and the options of `memmod.export.program`."""

    format: str = "onnx"
    sets: bool = False
    any_size: bool = False
    threshold: float | None = None


def export_run(
    unlearned: Unlearned,
    forget: Sequence[int] = (),
    out: str | os.PathLike[str] | None = None,
    options: ExportOptions | None = None,
    *,
    overwrite: bool = False,
) -> Exported:
    """Write an unlearned network as one file, checked against the network before it is written.

    Args:
        forget: classes to forget for good, with gates below the threshold (default 0.3) closed; none: the selection is
            an input of the file, which safetensors cannot have.
        out: default: exported.SUFFIX or exported-CLASSES.SUFFIX in the run folder.

    Raises:
        MemmodError: the file exists, options that exclude each other, a package is missing, or the network cannot be
            exported as asked.
    """
    options = options or ExportOptions()
    if options.format not in FORMATS:
        raise RunError(f"format is {options.format!r}; it must be one of {', '.join(FORMATS)}")
    wf, suffix = unlearned.wf, FORMATS[options.format]
    if forget:
        check_forgettable(forget, wf.num_classes)
    names = unlearned.base.meta["class_names"]
    label = "-".join(names[c] for c in forget)
    default = f"exported-{slug(label)}{suffix}" if forget else f"exported{suffix}"
    path = Path(out) if out is not None else unlearned.run.file(default)
    if path.exists() and not overwrite:
        raise RunError(f"already there: {path}; choose another --out, or replace it with --overwrite")
    chosen: dict[str, Any] = {"forget": set(forget) if forget else None, "threshold": options.threshold}
    if forget and options.threshold is None:
        chosen["threshold"] = THRESHOLD
    if options.format == "safetensors":
        if options.sets or options.any_size:
            raise SelectionError(
                "safetensors hold weights alone, for images and batches of any size: leave sets and sizes out"
            )
        return export.safetensors(wf, path, **chosen)
    write = export.onnx if options.format == "onnx" else export.program
    return write(wf, path, sets=options.sets, any_size=options.any_size, **chosen)
