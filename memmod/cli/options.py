"""What the commands share: the application, its options, and how it reports what went wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from memmod.distributed.launched import launched_count, launched_rank
from memmod.errors import MemmodError, RunError

# torch and what needs it are imported inside the commands, so that --help and usage errors come at once

RUNS = Path("runs")
# Of the commands in --help: from the first to the last of a project.
ORDER = (
    "demo",
    "train",
    "unlearn",
    "evaluate",
    "explain",
    "report",
    "retrain",
    "audit",
    "audits",
    "compare",
    "erase",
    "frontier",
    "bake",
    "export",
    "coverage",
    "info",
)
# Commands that several processes can share.
SHARED = ("unlearn",)

console = Console()


class _Commands(TyperGroup):
    """Prints what went wrong as one message and exits with 1; usage errors exit with 2."""

    def list_commands(self, ctx: typer.Context) -> list[str]:
        return sorted(super().list_commands(ctx), key=ORDER.index)

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        for arg in args:
            try:
                arg.encode()
            except UnicodeEncodeError:
                raise typer.BadParameter(f"{ascii(arg)} has bytes that are not UTF-8: rename what it names") from None
        return super().parse_args(ctx, args)

    def invoke(self, ctx: typer.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (MemmodError, OSError) as error:
            everywhere = getattr(error, "everywhere", False)
            if launched_rank() == 0 or not everywhere:
                where = f"on process {launched_rank()}: " if launched_count() > 1 and not everywhere else ""
                typer.echo(f"memmod: {where}{error}", err=True)
            raise typer.Exit(1) from None

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:
        found = super().resolve_command(ctx, args)
        if launched_count() > 1 and found[0] not in SHARED:
            error = RunError(
                f"{launched_count()} processes were started, but `memmod {found[0]}` is the work of one: start it "
                f"without torchrun; {', '.join(f'`memmod {name}`' for name in SHARED)} alone runs on several"
            )
            error.everywhere = True
            raise error
        return found


def examples(*lines: str) -> str:
    return "[bold]Examples[/bold]\n" + "\n".join(f"$ {line}" for line in lines)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Image classifiers that forget: unlearn every class in one round of training, choose at run time which of "
    "them a network forgets, and bake a choice into ordinary weights.",
    epilog=examples("memmod demo", "memmod train --data digits --model vit", "memmod COMMAND --help"),
)

DATA_HELP = "digits, fashion-mnist, mnist, cifar10, cifar100, imagenet or folder:PATH."
DataRoot = Annotated[str | None, typer.Option("--data-root", help="Where the data are, if not in their usual place.")]
ImageSize = Annotated[
    int | None, typer.Option(min=8, help="Side in pixels, for imagenet and folders.", show_default="224")
]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision download the data.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run of the same settings.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in the same folder.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's choice")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of every random draw.")]
Shard = Annotated[
    bool, typer.Option("--shard", help="Split base, memories and optimiser over torchrun's processes (FSDP).")
]
Device = Annotated[str, typer.Option(help="cpu, or cuda where there is a GPU.")]
MovedBase = Annotated[Path | None, typer.Option("--base", help="The base's run folder, if it has moved since.")]
Oracles = Annotated[
    Path | None, typer.Option(help="Where oracles are kept.", show_default="beside the base, with -oracles")
]
UnlearnedRun = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder of memmod unlearn.")]


def default_folder(data: str, model: str) -> Path:
    """Where `memmod train` puts a base unless told otherwise."""
    from memmod.runs.folder import slug

    name = Path(data.removeprefix("folder:")).name if data.startswith("folder:") else data
    return RUNS / slug(f"{name}-{model}")


def parse_classes(texts: list[str], class_names: list[str], option: str = "--forget") -> tuple[int, ...]:
    """Class numbers of names and numbers separated by commas; a name that holds a comma is found whole.

    Raises:
        SelectionError: an unknown name, a number out of range, or nothing at all.
    """
    from memmod.errors import SelectionError
    from memmod.selection import to_index

    tokens = []
    for text in texts:
        tokens += [text] if text in class_names else [part.strip() for part in text.split(",") if part.strip()]
    entries = {t if t in class_names or not re.fullmatch(r"-?\d+", t) else int(t) for t in tokens}
    index = to_index(entries, len(class_names), class_names)
    if index is None:
        raise SelectionError(f"{option} names no class; the classes are {', '.join(map(repr, class_names[:20]))}")
    return tuple(index.flatten().tolist())


def check_exclusive(resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")


def given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def prepare(threads: int | None) -> None:
    import logging

    import torch
    from rich.logging import RichHandler

    logger = logging.getLogger("memmod")
    if not logger.handlers:
        logger.addHandler(RichHandler(console=Console(stderr=True), show_time=False, show_path=False))
    # One process speaks for all.
    console.quiet = launched_rank() > 0
    logger.setLevel(logging.ERROR if console.quiet else logging.NOTSET)
    if threads is not None:
        torch.set_num_threads(threads)
