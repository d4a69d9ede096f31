"""The charts of a run as files, for a paper."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memmod.errors import RunError
from memmod.files.atomic import write_atomically
from memmod.report import library
from memmod.report.data import Run
from memmod.report.figures import charts_of
from memmod.report.palette import on_paper

WIDTH = 520
_WRITERS: dict[str, Callable[[dict[str, Any]], bytes]] = {"png": library.png, "pdf": library.pdf}


def write_figures(run: Run, folder: str | os.PathLike[str], kind: str, *, overwrite: bool = False) -> list[Path]:
    """Write every chart of a run to `folder` as NAME.png or NAME.pdf, in the colours for light paper.

    Args:
        run: what its charts show.
        folder: is made where it is not there.
        kind: "png" or "pdf".
        overwrite: replace files that are there already.

    Raises:
        RunError: files that are there already, no chart at all, or vl-convert is not installed.
    """
    charts = charts_of(run)
    if not charts:
        raise RunError(
            f"the run {run.folder} has nothing to draw yet: `memmod evaluate` and `memmod explain` make what charts "
            "show"
        )
    paths = [Path(folder) / f"{chart.name}.{kind}" for chart in charts]
    existing = [str(path) for path in paths if path.exists()]
    if existing and not overwrite:
        raise RunError(
            f"already there: {', '.join(existing)}; choose another folder for --{kind}, or replace with --overwrite"
        )
    for chart, path in zip(charts, paths, strict=True):
        spec = chart.at(WIDTH) | {
            "title": {"text": chart.title, "anchor": "start", "fontSize": 13},
            "background": "white",
        }
        write_atomically(path, _WRITERS[kind](json.loads(on_paper(json.dumps(spec)))))
    return paths
