"""The command that explains what forgetting does to a network."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer
from rich.console import Console

from memmod.cli.options import (
    DataRoot,
    Device,
    MovedBase,
    Seed,
    Threads,
    UnlearnedRun,
    app,
    console,
    examples,
    parse_classes,
    prepare,
)
from memmod.ops.gating import CLOSED


@app.command(
    epilog=examples(
        "memmod explain runs/digits-resnet-unlearned",
        "memmod explain runs/fashion-mnist-resnet-unlearned --classes shirt,bag --set sandal,sneaker",
    ),
)
def explain(
    run: UnlearnedRun,
    classes: Annotated[
        list[str] | None,
        typer.Option(help="Classes whose images are taken apart.", show_default="all, of more than 50 twenty"),
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Classes that are also forgotten together. Repeatable.")
    ] = None,
    mean_of: Annotated[int, typer.Option(min=1, help="Test images of each class to take apart.")] = 100,
    images: Annotated[int, typer.Option(min=0, help="Of them, those shown with maps.")] = 4,
    units: Annotated[int, typer.Option(min=0, help="Most specific units of each class to show responses of.")] = 1,
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="Gates below it count as closed.")] = CLOSED,
    steps: Annotated[int, typer.Option(min=1, help="Points of each attribution's integral.")] = 16,
    faithfulness: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="IMAGES",
            help="Test images to measure the faithfulness of maps on, beside those of other methods (captum); 400 take "
            "minutes. 0: not measured.",
        ),
    ] = 0,
    seed: Seed = 0,
    base: MovedBase = None,
    data_root: DataRoot = None,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Explain a run: which units carry which class, where its images go, and what forgetting takes from them.

    Writes explanation.json into the run folder, and prints the recount of every class.
    """
    from memmod.cli.terminal import explaining_bar, say
    from memmod.runs.commands import usable_device
    from memmod.runs.explain import ExplainOptions, explain_run
    from memmod.runs.restore import restore_unlearned

    prepare(threads)
    target = usable_device(device)
    unlearned = restore_unlearned(run, base)
    names = unlearned.base.meta["class_names"]
    options = ExplainOptions(
        classes=parse_classes(classes, names, "--classes") if classes else None,
        sets=tuple(parse_classes([each], names, "--set") for each in sets or ()),
        mean_of=mean_of,
        images=min(images, mean_of),
        units=units,
        threshold=threshold,
        steps=steps,
        faithfulness=faithfulness,
        seed=seed,
    )
    dataset = unlearned.load_data(data_root)
    unlearned.wf.to(target)
    with explaining_bar(Console(stderr=True)) as on_step:
        explained = explain_run(unlearned, dataset, options, on_step=on_step)
    for own in explained.explanation["recount"]["classes"]:
        if own["sentences"]:
            say(console, " ".join(sentence["text"] for sentence in own["sentences"]))
    say(console, f"Written to {shlex.quote(explained.path)}")
    say(console, f"Next: memmod report {shlex.quote(str(run))}")
