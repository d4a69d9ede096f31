"""What commands show on the terminal: progress bars and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from memmod.pipeline import Evaluation

# Fewer are checked before a bar could be read.
FEW_IMAGES = 2000


@contextmanager
def training_bar(console: Console) -> Iterator[Callable[[int, int, float], None]]:
    """A bar that shows from the first step on; yields what takes (step, steps, loss)."""
    with Progress(*_columns("training"), console=console) as bar:

        def progress(step: int, steps: int, loss: float) -> None:
            task = bar.task_ids[0] if bar.task_ids else bar.add_task("", total=steps, text="")
            bar.update(task, completed=step, text=f"loss {loss:.3f}")

        yield progress


@contextmanager
def evaluation_bar(images: int, console: Console) -> Iterator[Callable[[int], None]]:
    """A bar that shows from the first images on and goes away at the end; yields what takes how many were evaluated."""
    with Progress(*_columns("evaluating"), console=console, transient=True) as bar:

        def progress(count: int) -> None:
            task = bar.task_ids[0] if bar.task_ids else bar.add_task("", total=images, text="")
            bar.advance(task, count)

        yield progress


@contextmanager
def checking_bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar that goes away at the end, for many images; yields what takes (images checked, images in all)."""
    with Progress(*_columns("checking the images"), console=console, transient=True) as bar:

        def progress(done: int, images: int) -> None:
            if images <= FEW_IMAGES:
                return
            task = bar.task_ids[0] if bar.task_ids else bar.add_task("", total=images, text="")
            bar.update(task, completed=done, total=images, visible=done < images)

        yield progress


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


def _columns(what: str) -> tuple:
    text = TextColumn("{task.fields[text]}", markup=False)
    return (TextColumn(what), BarColumn(), TaskProgressColumn(), text, TimeRemainingColumn())
