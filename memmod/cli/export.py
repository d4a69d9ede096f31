"""The command that writes a run as a file for other programs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from memmod.cli.options import MovedBase, Threads, UnlearnedRun, app, console, examples, parse_classes, prepare


class Format(str, Enum):
    onnx = "onnx"
    safetensors = "safetensors"
    torch_export = "torch-export"


@app.command(
    epilog=examples(
        "memmod export runs/digits-resnet-unlearned",
        "memmod export runs/digits-resnet-unlearned --format torch-export --sets",
        "memmod export runs/fashion-mnist-resnet-unlearned --format safetensors --forget bag,sandal",
    ),
)
def export(
    run: UnlearnedRun,
    format: Annotated[
        Format, typer.Option(help="onnx, torch-export (.pt2), or safetensors for the base's own code.")
    ] = (Format.onnx),
    forget: Annotated[
        list[str] | None,
        typer.Option(
            help="Forget these classes for good. Names or numbers, separated by commas. Repeatable.",
            show_default="the selection is an input",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="With --forget: gates below it become exactly 0.", show_default="0.3"),
    ] = None,
    sets: Annotated[bool, typer.Option("--sets", help="The selection holds several classes for each image.")] = False,
    any_size: Annotated[bool, typer.Option("--any-size", help="Take images of any height and width.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="The file.", show_default="exported.SUFFIX or exported-CLASSES.SUFFIX in RUN")
    ] = None,
    base: MovedBase = None,
    threads: Threads = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier file.")] = False,
) -> None:
    """Write an unlearned network as one file that other programs run: ONNX, a torch.export program, or plain weights.

    Without --forget what to forget is an input of the file, a class for each image. The file is compared with the
    network before it is written, and says itself how it is called.
    """
    from memmod.cli.terminal import say
    from memmod.runs.export import ExportOptions, export_run
    from memmod.runs.restore import restore_unlearned

    prepare(threads)
    unlearned = restore_unlearned(run, base)
    classes = parse_classes(forget, unlearned.base.meta["class_names"]) if forget else ()
    options = ExportOptions(format.value, sets, any_size, threshold)
    written = export_run(unlearned, classes, out, options, overwrite=overwrite)
    size = written.path.stat().st_size / 2**20
    say(
        console,
        f"Written to {written.path} ({size:.1f} MiB); its logits differ from the network's by at most "
        f"{written.max_deviation:.1g} of the largest. To call it:",
    )
    for line in written.card["call"]:
        say(console, f"  {line}")
