"""The progress bar of a round: losses, the worst class, and what is left."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from memmod.unlearning.monitor import Evaluation
from memmod.unlearning.objectives import Losses


class ProgressBar:
    """Shows a round while it runs; a context manager. `quiet` shows nothing."""

    def __init__(
        self, steps: int, done: int, class_names: tuple[str, ...], quiet: bool, console: Console | None
    ) -> None:
        self._names = class_names
        self._bar = Progress(
            TextColumn("unlearning"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}", markup=False),
            TextColumn("{task.fields[accuracy]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            disable=quiet,
        )
        self._task = self._bar.add_task("", total=steps, completed=done, losses="", accuracy="")

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, done: int, losses: Losses) -> None:
        """One step done."""
        text = f"loss {losses.total:.3f} (retain {losses.retain:.3f}, forget {losses.forget:.3f})"
        self._bar.update(self._task, completed=done, losses=text)

    def evaluated(self, evaluation: Evaluation) -> None:
        """One evaluation done."""
        text = (
            f"worst class {self._names[evaluation.worst_class]} {evaluation.worst_forget:.1%}, "
            f"retained {evaluation.mean_retain:.1%}"
        )
        self._bar.update(self._task, accuracy=text)
