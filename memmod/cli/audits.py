"""The commands that show what is really gone: retrain oracles, audit a run, compare methods."""

from __future__ import annotations

import json
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
    Seed,
    Threads,
    app,
    console,
    examples,
    parse_classes,
    prepare,
)


@app.command(
    epilog=examples(
        "memmod retrain runs/digits-resnet --without 8",
        "memmod retrain runs/fashion-mnist-vit --without shirt,bag --seeds 5",
    ),
)
def retrain(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="A run folder of memmod train.")],
    without: Annotated[list[str], typer.Option(help="Class names or numbers, separated by commas. Repeatable.")],
    seeds: Annotated[int, typer.Option(min=1, help="How many oracles, one a seed.")] = 3,
    oracles: Oracles = None,
    data_root: DataRoot = None,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Train oracles: networks that never saw some classes, by which an audit judges what is gone.

    Each is trained as the base was, and kept by its settings, seed and data: what is there is not trained again, and
    what was interrupted goes on.
    """
    from memmod.cli.terminal import oracle_bar, say
    from memmod.runs.oracles import oracle_seeds
    from memmod.runs.oracles import retrain as train_oracles
    from memmod.runs.restore import restore_base

    prepare(threads)
    found = restore_base(base)
    classes = parse_classes(without, found.meta["class_names"], "--without")
    dataset = found.load_data(root=data_root)
    with oracle_bar(console) as progress:
        trained = train_oracles(
            found, classes, oracle_seeds(found, seeds), dataset, oracles, device=device, progress=progress
        )
    for oracle in trained:
        say(console, f"Seed {oracle.seed}: {oracle.folder}")


@app.command(
    epilog=examples(
        "memmod audit runs/digits-resnet-unlearned --forget 8 --quick",
        "memmod audit runs/fashion-mnist-resnet-unlearned --forget shirt",
    ),
)
def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder of memmod unlearn or memmod erase.")],
    forget: Annotated[
        list[str] | None,
        typer.Option(help="Class names or numbers, separated by commas. Repeatable.", show_default="what was erased"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=2, help="Oracles behind each interval; one more is held out.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer images, steps and shadow models.")] = False,
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="Gates below it become exactly 0.")] = 0.3,
    rivals: Annotated[
        bool,
        typer.Option(help="Of an erased run: beside it fine-tuning and a training from scratch on as many images."),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    oracles: Oracles = None,
    seed: Seed = 0,
    base: MovedBase = None,
    data_root: DataRoot = None,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Attack what a run still knows of some classes, and judge every figure by networks that never saw them.

    Trains the oracles and rivals that are missing. Finished parts are kept: an interrupted audit goes on where it was.
    """
    from memmod.cli.terminal import audit_bar, oracle_bar, print_audit, rival_bar, say, told_estimate
    from memmod.runs.audits import CARD, TABLE, AuditOptions, audit_run
    from memmod.runs.erase import Erased, restore_run

    prepare(threads)
    found = restore_run(run, base)
    erased = found.forget if isinstance(found, Erased) else None
    if forget is None and erased is None:
        raise typer.BadParameter("name the classes that the network should have forgotten", param_hint="--forget")
    classes = parse_classes(forget, found.base.meta["class_names"]) if forget else erased
    dataset = (found if erased is None else found.unlearned).load_data(data_root)
    options = AuditOptions(seeds, quick, threshold, seed, device, oracles, rivals)
    quiet = Console(stderr=True)
    with oracle_bar(quiet) as on_oracle, rival_bar(quiet) as on_rival, audit_bar(quiet) as on_part:
        audited = audit_run(
            found,
            classes,
            dataset,
            options,
            on_estimate=told_estimate(quiet),
            on_oracle=on_oracle,
            on_rival=on_rival,
            on_part=on_part,
        )
    if as_json:
        typer.echo((audited.folder / CARD).read_text(encoding="utf-8"))
        return
    names = ", ".join(dataset.class_names[c] for c in classes)
    print_audit(console, audited.card, f"{run}: {names}")
    say(console, f"Written to {shlex.quote(str(audited.folder))}: {CARD}, {TABLE}")


@app.command(
    epilog=examples(
        "memmod audits runs/fashion-mnist-resnet-unlearned-erased-*",
        "memmod audits runs/digits-resnet-unlearned --quick",
    ),
)
def audits(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders with audits in them.")],
    quick: Annotated[bool, typer.Option("--quick", help="Of the quick audits, instead of the full ones.")] = False,
    out: Annotated[Path | None, typer.Option(help="Markdown file for the table.", show_default="none")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Means of the figures of several audits, over classes, seeds and runs, beside those of the oracles."""
    from memmod.cli.terminal import print_means, say
    from memmod.files.atomic import write_atomically
    from memmod.runs.audit_means import means, read_cards

    found = means(read_cards(runs, quick))
    if out is not None:
        write_atomically(out, found.markdown().encode())
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    print_means(console, found)
    if out is not None:
        say(console, f"Written to {shlex.quote(str(out))}")


@app.command(
    epilog=examples(
        "memmod compare runs/digits-resnet-unlearned --forget 3,8",
        "memmod compare runs/fashion-mnist-resnet-unlearned --methods scrub,ssd --no-tuned",
        "memmod compare runs/fashion-mnist-resnet-unlearned --tune-on shirt,sandal",
    ),
)
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders of memmod unlearn, of one base.")],
    forget: Annotated[
        list[str] | None,
        typer.Option(help="Class names or numbers, separated by commas, each by itself.", show_default="all"),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Names of methods, separated by commas.", show_default="all")
    ] = None,
    tuned: Annotated[bool, typer.Option(help="Also with settings chosen on held-out training images.")] = True,
    tune_on: Annotated[
        list[str] | None,
        typer.Option(help="Choose settings on these classes, for all of them.", show_default="each class by itself"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Oracles of each class that distances are to.")] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="Probes on fewer images.")] = False,
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="Gates below it become exactly 0.")] = 0.3,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the table.", show_default="the first run's, with -compared")
    ] = None,
    oracles: Oracles = None,
    seed: Seed = 0,
    base: MovedBase = None,
    data_root: DataRoot = None,
    threads: Threads = None,
) -> None:
    """Put runs beside other methods of unlearning and the trivial controls: one table, the same oracles for all.

    Trains the oracles that are missing. Finished networks' figures are kept: an interrupted comparison goes on.
    """
    from memmod.cli.terminal import comparing_bar, oracle_bar, print_comparison, say
    from memmod.runs.compare import TABLE, CompareOptions
    from memmod.runs.compare import compare as compare_runs
    from memmod.runs.restore import restore_unlearned

    prepare(threads)
    found = [restore_unlearned(run, base) for run in runs]
    names = found[0].base.meta["class_names"]
    classes = parse_classes(forget, names) if forget else tuple(range(len(names)))
    dataset = found[0].load_data(data_root)
    chosen = {} if methods is None else {"methods": tuple(name.strip() for name in methods.split(",") if name.strip())}
    options = CompareOptions(
        tuned=tuned,
        tune_on=parse_classes(tune_on, names, "--tune-on") if tune_on else None,
        seeds=seeds,
        quick=quick,
        threshold=threshold,
        seed=seed,
        oracles=oracles,
        **chosen,
    )
    folder = out or runs[0].with_name(f"{runs[0].name}-compared")
    quiet = Console(stderr=True)
    with oracle_bar(quiet) as on_oracle, comparing_bar(quiet) as on_step:
        result = compare_runs(found, classes, dataset, folder, options, on_oracle=on_oracle, on_step=on_step)
    print_comparison(console, result, f"{len(classes)} classes of {dataset.name}, each forgotten by itself")
    say(console, f"Written to {shlex.quote(str(folder / TABLE))}")
