"""The commands that erase classes for good, and show what that costs by budget."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from memmod.cli.options import (
    DataRoot,
    Device,
    MovedBase,
    Oracles,
    Overwrite,
    Resume,
    Seed,
    Threads,
    UnlearnedRun,
    app,
    check_exclusive,
    console,
    examples,
    given,
    parse_classes,
    prepare,
)


@app.command(
    epilog=examples(
        "memmod erase runs/fashion-mnist-resnet-unlearned --forget shirt",
        "memmod erase runs/digits-resnet-unlearned --forget 3,8 --budget 0.1",
    ),
)
def erase(
    run: UnlearnedRun,
    forget: Annotated[list[str], typer.Option(help="Class names or numbers, separated by commas. Repeatable.")],
    budget: Annotated[float, typer.Option(help="Images to train on, as a share of the base's training.")] = 0.2,
    lr: Annotated[float | None, typer.Option(help="The highest learning rate.", show_default="fits the base's")] = None,
    optimiser: Annotated[
        str | None, typer.Option(help="muon (for hidden weights) or adamw.", show_default="muon")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, show_default="half the base's")] = None,
    reset: Annotated[
        list[str] | None,
        typer.Option(help="Layers to draw anew. Repeatable.", show_default="the upper block or two, and the head"),
    ] = None,
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="Gates below it become exactly 0.")] = 0.3,
    out: Annotated[
        Path | None, typer.Option(help="Run folder.", show_default="the run's, with -erased-CLASSES")
    ] = None,
    seed: Seed = 0,
    base: MovedBase = None,
    data_root: DataRoot = None,
    device: Device = "cpu",
    threads: Threads = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Erase classes for good: the upper layers drawn anew, all weights trained on the images of the other classes.

    Writes an ordinary network of the base's architecture; the run and its memories stay as they are.
    """
    from memmod.cli.terminal import say, told_erasing, training_bar
    from memmod.runs.erase import EraseOptions, erase_run
    from memmod.runs.restore import restore_unlearned

    prepare(threads)
    check_exclusive(resume, overwrite)
    unlearned = restore_unlearned(run, base)
    names = unlearned.base.meta["class_names"]
    classes = parse_classes(forget, names)
    dataset = unlearned.load_data(data_root)
    layers = None if reset is None else tuple(reset)
    changes = given(budget=budget, lr=lr, batch_size=batch_size, optimiser=optimiser, reset=layers, seed=seed)
    with training_bar(console) as progress:
        erased = erase_run(
            unlearned,
            classes,
            dataset,
            out,
            EraseOptions(changes, threshold),
            device=device,
            resume=resume,
            overwrite=overwrite,
            on_plan=told_erasing(console),
            progress=progress,
        )
    found = erased.metrics
    say(
        console,
        f"Accuracy on test images of {', '.join(names[c] for c in classes)} at most {max(found['acc_forget']):.1%}, of "
        f"the others {found['mean_retain']:.1%}. The network is in {erased.run.path}",
    )
    say(console, f"Next: memmod audit {shlex.quote(str(erased.run.path))}")


@app.command(
    epilog=examples(
        "memmod frontier runs/fashion-mnist-resnet-unlearned --forget shirt,sandal,trouser",
        "memmod frontier runs/digits-resnet-unlearned --forget 3,8 --budgets 0.2,0.4 --seeds 2",
        "memmod frontier runs/digits-resnet-unlearned --forget 3,8 --forget 0,1,2 --together",
    ),
)
def frontier(
    run: UnlearnedRun,
    forget: Annotated[
        list[str], typer.Option(help="Class names or numbers, separated by commas, each by itself. Repeatable.")
    ],
    together: Annotated[
        bool, typer.Option("--together", help="The classes of each --forget are one set, erased at once.")
    ] = False,
    budgets: Annotated[
        str, typer.Option(help="Images to train on, as shares of the base's training, separated by commas.")
    ] = "0.05,0.1,0.2",
    seeds: Annotated[int, typer.Option(min=1, help="Networks at each budget, whose figures are averaged.")] = 1,
    judges: Annotated[int, typer.Option(min=2, help="Oracles of each class that figures are compared with.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="Probes on fewer images.")] = False,
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="Gates below it become exactly 0.")] = 0.3,
    out: Annotated[
        Path | None, typer.Option(help="Folder for table and picture.", show_default="the run's, with -frontier")
    ] = None,
    oracles: Oracles = None,
    base: MovedBase = None,
    data_root: DataRoot = None,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Erase classes at several budgets, beside trainings from scratch on as many images: accuracy and what is left.

    Writes a table and a picture. What was finished is kept: an interrupted call goes on where it was.
    """
    from memmod.cli.terminal import measuring_bar, network_bar, oracle_bar, print_frontier, say, told_frontier
    from memmod.runs.frontier import PICTURE, TABLE, FrontierOptions
    from memmod.runs.frontier import frontier as measure
    from memmod.runs.restore import restore_unlearned

    prepare(threads)
    options = FrontierOptions(_shares(budgets), seeds, judges, quick, threshold, device, oracles)
    unlearned = restore_unlearned(run, base)
    names = unlearned.base.meta["class_names"]
    if together:
        sets = [parse_classes([text], names) for text in forget]
    else:
        sets = [(c,) for c in parse_classes(forget, names)]
    dataset = unlearned.load_data(data_root)
    folder = out or run.with_name(f"{run.name}-frontier")
    quiet = Console(stderr=True)
    with (
        oracle_bar(quiet) as on_oracle,
        network_bar(quiet) as on_network,
        measuring_bar(quiet) as on_measured,
    ):
        found = measure(
            unlearned,
            sets,
            dataset,
            folder,
            options,
            on_estimate=told_frontier(quiet),
            on_oracle=on_oracle,
            on_network=on_network,
            on_measured=on_measured,
        )
    print_frontier(console, found, f"{run}: {'; '.join(found.sets.values())}")
    say(console, f"Written to {shlex.quote(str(folder))}: {TABLE}, {PICTURE}")


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of shares such as 0.1,0.2", param_hint="--budgets") from None
