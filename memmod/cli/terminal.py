"""What commands show on the terminal: progress bars and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from memmod.runs.commands import Evaluation

# Fewer are checked before a bar could be read.
FEW_IMAGES = 2000


@contextmanager
def training_bar(console: Console) -> Iterator[Callable[[int, int, float], None]]:
    """A bar that shows from the first step on; yields what takes (step, steps, loss)."""
    with _bar("training", console) as update:
        yield lambda step, steps, loss: update(step, steps, f"loss {loss:.3f}")


@contextmanager
def evaluation_bar(images: int, console: Console) -> Iterator[Callable[[int], None]]:
    """A bar that goes away at the end; yields what takes the number of images evaluated since the last call."""
    done = 0
    with _bar("evaluating", console, transient=True) as update:

        def progress(count: int) -> None:
            nonlocal done
            done += count
            update(done, images)

        yield progress


@contextmanager
def checking_bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar that goes away at the end, for many images; yields what takes (images checked, images in all)."""
    with _bar("checking the images", console, transient=True) as update:

        def progress(done: int, images: int) -> None:
            if images > FEW_IMAGES:
                update(done, images)

        yield progress


@contextmanager
def _bar(what: str, console: Console, transient: bool = False) -> Iterator[Callable[..., None]]:
    """A bar from the first update on; yields what takes (done, total, text). A transient one goes away
    when all is done.

    Nothing is written before the first update, so that bars can take turns on one terminal.
    """
    columns = (TextColumn(what), BarColumn(), TaskProgressColumn())
    text_column = TextColumn("{task.fields[text]}", markup=False)
    bar = Progress(*columns, text_column, TimeRemainingColumn(), console=console, transient=transient)
    task = bar.add_task("", text="", total=None)

    def update(done: int, total: int, text: str = "") -> None:
        bar.update(task, completed=done, total=total, text=text)
        if done < total or not transient:
            bar.start()
        else:
            bar.stop()

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()


def say(console: Console, text: str) -> None:
    """Print a line as it is: names and paths may hold what rich would take for markup, or be longer than a line."""
    console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


def print_evaluation(console: Console, result: Evaluation, title: str) -> None:
    """Print a scorecard, and what BatchNorm statistics taken anew leave of it."""
    console.print(result.scorecard.table(title))
    anew = result.restandardised
    if anew is not None:
        worst = result.scorecard.class_names[anew.worst_selection[0]]
        say(
            console,
            f"With BatchNorm statistics taken anew under each selection: Acc_f {anew.mean_forget:.1%}, at worst "
            f"{anew.worst_forget:.1%} ({worst}); Acc_r {anew.mean_retain:.1%}",
        )
