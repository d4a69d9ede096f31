"""The command line: train a base, unlearn its classes, evaluate, audit, bake, and a demo of all of it."""

from __future__ import annotations

import io
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from memmod.cli import (  # noqa: F401 - they add their commands to the application
    audits,
    coverage,
    erase,
    explain,
    export,
    report,
)
from memmod.cli.options import (
    DATA_HELP,
    RUNS,
    DataRoot,
    Device,
    Download,
    ImageSize,
    MovedBase,
    Overwrite,
    Resume,
    Seed,
    Shard,
    Threads,
    UnlearnedRun,
    app,
    check_exclusive,
    console,
    default_folder,
    examples,
    given,
    parse_classes,
    prepare,
)
from memmod.distributed.launched import launched_rank
from memmod.errors import RunError

if TYPE_CHECKING:
    from memmod.runs.restore import Base

# torch and what needs it are imported inside the commands, so that --help and usage errors come at once


@app.command(
    epilog=examples("memmod demo", "memmod demo --out /tmp/demo --seed 1"),
)
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the runs and the report.")] = RUNS / "demo",
    seed: Seed = 0,
    # layers this small gain little from a second thread, and lose much where the machine has other work
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Train a ResNet and a ViT on digits, unlearn all ten classes of each, and write a report.

    A later demo in the same folder replaces the earlier one.
    """
    from memmod.cli.demo import run_demo
    from memmod.cli.terminal import say

    prepare(threads)
    page = run_demo(out, seed, console)
    say(console, f"\nThe report is in {page}: {page.resolve().as_uri()}")


@app.command(
    epilog=examples(
        "memmod train --data digits --model resnet",
        "memmod train --data fashion-mnist --model vit --seed 1 --out runs/vit-1",
        "memmod train --data folder:photos --model timm:resnet18 --pretrained --epochs 5",
        "memmod train --data folder:photos --model timm:resnet18 --pretrained --epochs 5 --resume",
    ),
)
def train(
    data: Annotated[str, typer.Option(help=DATA_HELP)] = "digits",
    model: Annotated[
        str, typer.Option(help="resnet, vgg, vit (small), or a timm model: NAME or timm:NAME.")
    ] = "resnet",
    out: Annotated[Path | None, typer.Option(help="Run folder.", show_default="runs/DATA-MODEL")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Start from timm's weights (a download).")] = False,
    epochs: Annotated[int | None, typer.Option(min=0, show_default="fits the data")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, show_default="fits the data")] = None,
    lr: Annotated[
        float | None, typer.Option(help="AdamW's highest learning rate.", show_default="fits the model")
    ] = None,
    seed: Seed = 0,
    data_root: DataRoot = None,
    image_size: ImageSize = None,
    download: Download = False,
    device: Device = "cpu",
    threads: Threads = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a base: an ordinary classifier, whose classes `memmod unlearn` then makes forgettable."""
    from memmod.cli.terminal import checking_bar, say, training_bar
    from memmod.runs import commands

    prepare(threads)
    check_exclusive(resume, overwrite)
    folder = out or default_folder(data, model)
    options = commands.DataOptions(data, data_root, image_size, download)
    changes = given(epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
    with training_bar(console) as progress, checking_bar(Console(stderr=True)) as on_checked:
        base = commands.train(
            folder,
            options,
            model,
            pretrained=pretrained,
            changes=changes,
            device=device,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            on_checked=on_checked,
        )
    say(console, f"Test accuracy {base.meta['metrics']['accuracy']:.2%}. The base is in {folder}")
    say(console, f"Next: memmod unlearn --base {shlex.quote(str(folder))}")


@app.command(
    epilog=examples(
        "memmod unlearn --data digits --model resnet",
        "memmod unlearn --base runs/vit-1 --preset fast",
        "memmod unlearn --data fashion-mnist --model resnet --resume",
        "torchrun --nproc-per-node 4 -m memmod unlearn --base runs/vit-1 --device cuda",
        "torchrun --nnodes 2 --nproc-per-node 8 ... -m memmod unlearn --base runs/large --device cuda --shard",
    ),
)
def unlearn(
    data: Annotated[str | None, typer.Option(help=DATA_HELP, show_default="the base's")] = None,
    model: Annotated[str | None, typer.Option(help="The base's model.", show_default="the base's, or resnet")] = None,
    base: Annotated[Path | None, typer.Option(help="The base's run folder.", show_default="runs/DATA-MODEL")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder.", show_default="the base's, with -unlearned")] = None,
    preset: Annotated[str, typer.Option(help="default (the measured recipe) or fast (a first look).")] = "default",
    objective: Annotated[
        str | None,
        typer.Option(
            help="masked-distillation, inverse-ce (the paper's), inverse-ce-per-class, inverse-ce-per-sample, "
            "negative-ce or kl-uniform.",
            show_default="the preset's",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, show_default="the preset's")] = None,
    lr: Annotated[float | None, typer.Option(show_default="the preset's")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, show_default="the preset's")] = None,
    expansion: Annotated[
        int | None, typer.Option(min=1, help="T: selections per retained image.", show_default="the preset's")
    ] = None,
    margin: Annotated[
        float | None, typer.Option(help="What a selected class's logit must lose by.", show_default="the preset's")
    ] = None,
    max_set_size: Annotated[
        int | None, typer.Option(min=1, help="Train with sets of 1 to this many classes.", show_default="the preset's")
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between evaluations on held-out training images.")
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(help="Leave layers of this name alone; * matches anything. Repeatable.")
    ] = None,
    seed: Seed = 0,
    data_root: DataRoot = None,
    image_size: ImageSize = None,
    download: Download = False,
    device: Device = "cpu",
    shard: Shard = False,
    threads: Threads = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train the memories of all classes of a base in one round; its weights stay as they are.

    Started by torchrun, its processes share the round: each runs a part of every batch.
    """
    from memmod.cli.terminal import checking_bar, say, unlearning_bar
    from memmod.distributed import processes
    from memmod.distributed.launch import own_device, process_group
    from memmod.runs import commands

    prepare(threads)
    check_exclusive(resume, overwrite)
    with process_group(own_device(device)):
        folder_of_base = base or default_folder(data or "digits", model or "resnet")
        found = processes.agreed(lambda: _base_of(folder_of_base, model))
        folder = out or found.folder.with_name(f"{found.folder.name}-unlearned")
        changes = given(
            objective=objective,
            steps=steps,
            lr=lr,
            batch_size=batch_size,
            expansion=expansion,
            margin=margin,
            max_set_size=max_set_size,
            eval_every=eval_every,
            seed=seed,
        )
        names = found.meta["class_names"]
        with unlearning_bar(names, console) as progress, checking_bar(Console(stderr=True)) as on_checked:
            unlearned = commands.unlearn(
                found,
                folder,
                commands.UnlearnOptions(preset, changes, tuple(skip or ()), device, shard),
                data=commands.DataOptions(data or found.meta["data"], data_root, image_size, download),
                resume=resume,
                overwrite=overwrite,
                progress=progress,
                on_checked=on_checked,
            )
        metrics = unlearned.run.metrics() if launched_rank() == 0 else {}
        # A split model holds the group.
        del unlearned
    if launched_rank() > 0:
        return
    best = metrics["best"]
    say(
        console,
        f"On held-out training images, after step {best['step']}: accuracy on a forgotten class at most "
        f"{max(best['acc_forget']):.1%}, on the others {best['mean_retain']:.1%} (before: "
        f"{metrics['base_retain']:.1%}); {metrics['seconds']:.0f} s. The memories are in {folder}",
    )
    say(console, f"Next: memmod evaluate {shlex.quote(str(folder))}")


@app.command(
    epilog=examples(
        "memmod evaluate runs/digits-resnet-unlearned",
        "memmod evaluate runs/digits-resnet-unlearned --sets 2,3,5 --json > card.json",
    ),
)
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder of memmod unlearn or memmod erase.")],
    sets: Annotated[str, typer.Option(help="Sizes of random sets of classes to forget at once; '' for none.")] = "2,3",
    sets_per_size: Annotated[int, typer.Option(min=1, help="Random sets of each size.")] = 10,
    statistics: Annotated[
        bool, typer.Option(help="Also measure with BatchNorm statistics taken anew under each selection.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    seed: Seed = 0,
    base: MovedBase = None,
    data_root: DataRoot = None,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Measure every class on the test split, beside the original network, a logit mask and random gates.

    An erased network beside the original alone.
    """
    from memmod.cli.terminal import checking_bar, evaluation_bar, print_erased, print_evaluation, say
    from memmod.evaluation import forward_passes
    from memmod.runs import commands
    from memmod.runs.erase import Erased, evaluate_erased, restore_run

    prepare(threads)
    sizes = _sizes(sets)
    unlearned = restore_run(run, base)
    if isinstance(unlearned, Erased):
        found = evaluate_erased(unlearned, unlearned.unlearned.load_data(data_root))
        if as_json:
            typer.echo(json.dumps(found.to_dict(), indent=2))
        else:
            print_erased(console, found, f"{run}")
        return
    passes = forward_passes(unlearned.wf.num_classes, sizes, sets_per_size, seed)
    dataset = unlearned.load_data(data_root)
    images = passes * len(dataset.test)
    with (
        checking_bar(Console(stderr=True)) as on_checked,
        evaluation_bar(images, Console(stderr=True)) as on_image,
    ):
        result = commands.evaluate(
            unlearned,
            dataset,
            device=device,
            set_sizes=sizes,
            sets_per_size=sets_per_size,
            seed=seed,
            statistics=statistics,
            on_image=on_image,
            on_checked=on_checked,
        )
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
        return
    print_evaluation(console, result, f"{run}")
    say(console, f"Written to {unlearned.run.file(commands.SCORECARD)}")


@app.command(
    epilog=examples(
        "memmod bake runs/digits-resnet-unlearned --forget 3",
        "memmod bake runs/fashion-mnist-resnet-unlearned --forget bag,sandal --out without.safetensors",
    ),
)
def bake(
    run: UnlearnedRun,
    forget: Annotated[list[str], typer.Option(help="Class names or numbers, separated by commas. Repeatable.")],
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="Gates below it become exactly 0.")] = 0.3,
    out: Annotated[
        Path | None, typer.Option(help="The .safetensors file.", show_default="baked-CLASSES.safetensors in RUN")
    ] = None,
    base: MovedBase = None,
    data_root: DataRoot = None,
    threads: Threads = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier file.")] = False,
) -> None:
    """Write the weights of a network that has forgotten some classes for good, as an ordinary state dict.

    Beside it, a .json says how to load it. Prints what it costs in accuracy on the test split.
    """
    from rich.table import Table
    from rich.text import Text

    from memmod.cli.terminal import checking_bar, say
    from memmod.evaluation.scorecard import percent
    from memmod.runs import commands
    from memmod.runs.restore import restore_unlearned

    prepare(threads)
    unlearned = restore_unlearned(run, base)
    names = unlearned.base.meta["class_names"]
    classes = parse_classes(forget, names)
    with checking_bar(Console(stderr=True)) as on_checked:
        baked = commands.bake(
            unlearned,
            classes,
            out,
            threshold=threshold,
            data_root=data_root,
            overwrite=overwrite,
            on_checked=on_checked,
        )
    table = Table(title=Text(f"forgotten: {', '.join(names[c] for c in classes)}", "table.title"))
    for heading, side in (("", "left"), ("Acc_f", "right"), ("Acc_r", "right")):
        table.add_column(heading, justify=side)
    for stage in baked.stages:
        table.add_row(stage.method, percent(stage.acc_forget[0]), percent(stage.acc_retain[0]))
    console.print(table)
    cost = 100 * (baked.stages[-1].acc_retain[0] - baked.stages[1].acc_retain[0])
    say(
        console,
        f"{baked.zeroed} of {baked.units} gates are below {threshold:g} and became 0; baking changes Acc_r by "
        f"{cost:+.2f} points. The weights are in {baked.weights}, how to load them in {baked.card}",
    )


@app.command(epilog=examples("memmod info"))
def info() -> None:
    """Print what is installed, which backends can run, and why others cannot."""
    from memmod.info import main as print_info

    print_info()


def _base_of(folder: Path, model: str | None) -> Base:
    """The base in a folder. Raises RunError where it is another model than `model`, if that is given."""
    from memmod.runs.restore import restore_base

    found = restore_base(folder)
    if model is not None and model != found.meta["model"]:
        raise RunError(f"the base in {found.folder} is a {found.meta['model']!r}, not the {model!r} that --model names")
    return found


def _sizes(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of sizes such as 2,3", param_hint="--sets")
    return tuple(map(int, parts))


def main() -> None:
    """The console command `memmod`."""
    for stream in (sys.stdout, sys.stderr):
        # a name that the terminal's encoding lacks is shown escaped, not an error once the work is done
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()


if __name__ == "__main__":
    main()
