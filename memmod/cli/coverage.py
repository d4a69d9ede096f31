"""The command that tries memmod on the models people use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memmod.cli.options import RUNS, app, console, examples, prepare


@app.command(
    epilog=examples(
        "memmod coverage",
        "memmod coverage --kinds timm --model resnet10t --model volo_d1_224 --out /tmp/coverage.md",
    ),
)
def coverage(
    out: Annotated[Path, typer.Option(help="The table, as Markdown.")] = Path("docs/coverage.md"),
    kinds: Annotated[
        str | None,
        typer.Option(
            help="timm, torchvision, hf (Hugging Face, needs transformers).", show_default="all that are installed"
        ),
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="Only this model. Repeatable.")] = None,
    kept: Annotated[Path, typer.Option(help="Where finished models are kept.")] = RUNS / "coverage",
    largest: Annotated[float, typer.Option(help="Millions of weights above which a model is not tried.")] = 100,
    memory: Annotated[float, typer.Option(help="GiB that the process of one model may hold.")] = 10,
    timeout: Annotated[float, typer.Option(help="Seconds that one model may take.")] = 600,
) -> None:
    """Gate, verify, train and bake the smallest model of every timm module, every torchvision classifier and Hugging
    Face's image models, with random weights, and write a table: what passes, which share of the weights is gated, and
    why not the rest. Exits with 1 if a model fails.
    """
    from memmod.cli.terminal import coverage_bar, say
    from memmod.runs.coverage import run_coverage
    from memmod.runs.coverage_models import KINDS, has_transformers

    prepare(None)
    installed = KINDS if has_transformers() else tuple(kind for kind in KINDS if kind != "hf")
    chosen = installed if kinds is None else tuple(part.strip() for part in kinds.split(",") if part.strip())
    with coverage_bar(console) as on_step:
        rows = run_coverage(
            out,
            kept,
            kinds=chosen,
            only=tuple(model or ()),
            largest=largest,
            memory=memory,
            timeout=timeout,
            on_step=on_step,
        )
    failed = [row for row in rows if row.outcome == "fails"]
    for row in failed:
        say(console, f"{row.kind} {row.name}: {row.detail}")
    say(console, f"{len(rows) - len(failed)} of {len(rows)} models pass or were left out. The table is in {out}")
    if failed:
        raise typer.Exit(1)
