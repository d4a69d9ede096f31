"""The command that writes a page about a run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from memmod.cli.options import MovedBase, app, console, examples


@app.command(
    epilog=examples(
        "memmod report runs/digits-resnet-unlearned",
        "memmod report runs/fashion-mnist-resnet-unlearned --pdf figures",
        "memmod report runs/fashion-mnist-resnet-unlearned-erased-shirt --out shirt.html",
    ),
)
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder of any command.")],
    out: Annotated[Path | None, typer.Option(help="The .html file.", show_default="report.html in RUN")] = None,
    png: Annotated[Path | None, typer.Option(help="Folder for the figures as PNG.")] = None,
    pdf: Annotated[Path | None, typer.Option(help="Folder for the figures as PDF.")] = None,
    base: MovedBase = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier files.")] = False,
) -> None:
    """Write one HTML page, which needs no network, about everything that a run folder holds.

    Shows what evaluate, explain, audit and compare have found, and says what is missing and which command makes it.
    """
    from memmod.cli.terminal import say
    from memmod.runs.report import report_run

    written = report_run(run, out, base=base, png=png, pdf=pdf, overwrite=overwrite)
    for path in written.figures:
        say(console, f"Written to {path}")
    say(console, f"The page is in {shlex.quote(str(written.page))}: {written.page.resolve().as_uri()}")
