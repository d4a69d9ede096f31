"""What commands show on the terminal: progress bars and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import progress as bars
from rich.console import Console
from rich.table import Table
from rich.text import Text

from memmod.evaluation.audit import AuditCard
from memmod.evaluation.audit import Progress as AuditProgress
from memmod.evaluation.scorecard import HEADINGS, Scorecard
from memmod.runs.audit_means import Means
from memmod.runs.audits import Estimate
from memmod.runs.commands import Evaluation
from memmod.runs.compare import HEADINGS as COMPARE_HEADINGS
from memmod.runs.compare import Comparison
from memmod.runs.compare import Step as CompareStep
from memmod.runs.coverage import CoverageStep
from memmod.runs.erase import ErasedAccuracies
from memmod.runs.explain import ExplainStep
from memmod.runs.frontier import HEADINGS as FRONTIER_HEADINGS
from memmod.runs.frontier import Frontier, Measured
from memmod.runs.kept import TrainingStep
from memmod.unlearning.erase import Erasing
from memmod.unlearning.progress import Progress

# Fewer are checked before a bar could be read.
FEW_IMAGES = 2000
# By verdict; those that read the same in any colour stay plain.
_STYLES = {"worse": "red", "broken": "yellow"}


@contextmanager
def training_bar(console: Console) -> Iterator[Callable[[int, int, float], None]]:
    """A bar that shows from the first step on; yields what takes (step, steps, loss)."""
    with _bar("training", console) as update:
        yield lambda step, steps, loss: update(step, steps, f"loss {loss:.3f}")


@contextmanager
def unlearning_bar(class_names: Sequence[str], console: Console) -> Iterator[Callable[[Progress], None]]:
    """A bar with the losses, the worst class and the accuracy on the others; yields a `Trainer`'s callback."""
    evaluated = ""
    with _bar("unlearning", console) as update:

        def progress(state: Progress) -> None:
            nonlocal evaluated
            losses, evaluation = state.losses, state.evaluation
            if evaluation is not None:
                worst = class_names[evaluation.worst_class]
                evaluated = (
                    f"; worst class {worst} {evaluation.worst_forget:.1%}, retained {evaluation.mean_retain:.1%}"
                )
            trained = (
                ""
                if losses is None
                else f"loss {losses.total:.3f} (retain {losses.retain:.3f}, forget {losses.forget:.3f})"
            )
            update(state.step, state.steps, f"{trained}{evaluated}".removeprefix("; "))

        yield progress


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
def oracle_bar(console: Console) -> Iterator[Callable[[TrainingStep], None]]:
    """A bar over all oracles that are trained; yields what `retrain` calls."""
    with _networks_bar("oracle", console) as progress:
        yield progress


@contextmanager
def rival_bar(console: Console) -> Iterator[Callable[[TrainingStep], None]]:
    """A bar over an erased network's rivals that are trained; yields what `audit_run` calls."""
    with _networks_bar("rival", console) as progress:
        yield progress


@contextmanager
def network_bar(console: Console) -> Iterator[Callable[[TrainingStep], None]]:
    """A bar over all networks of a frontier that are trained; yields what `frontier` calls."""
    with _networks_bar("network", console) as progress:
        yield progress


@contextmanager
def measuring_bar(console: Console) -> Iterator[Callable[[Measured], None]]:
    """A bar that goes away at the end; yields what `frontier` calls."""
    with _bar("measuring", console, transient=True) as update:
        yield lambda state: update(state.part, state.parts, f"{state.network}: {state.without}")


@contextmanager
def _networks_bar(what: str, console: Console) -> Iterator[Callable[[TrainingStep], None]]:
    with _bar(f"training {what}s", console) as update:

        def progress(state: TrainingStep) -> None:
            # networks may take different numbers of steps
            update(
                state.number - 1 + state.step / state.steps,
                state.count,
                f"{what} {state.number} of {state.count}, loss {state.loss:.3f}",
            )

        yield progress


@contextmanager
def audit_bar(console: Console) -> Iterator[Callable[[AuditProgress], None]]:
    """A bar that goes away at the end; yields what `audit` calls."""
    with _bar("auditing", console, transient=True) as update:
        yield lambda state: update(state.part, state.parts, f"{state.attack}: {state.subject}")


@contextmanager
def comparing_bar(console: Console) -> Iterator[Callable[[CompareStep], None]]:
    """A bar that goes away at the end; yields what `compare` calls."""
    with _bar("comparing", console, transient=True) as update:
        yield lambda state: update(state.part, state.parts, f"{state.method}: {state.class_name}")


@contextmanager
def coverage_bar(console: Console) -> Iterator[Callable[[CoverageStep], None]]:
    """A bar that goes away at the end; yields what `run_coverage` calls."""
    with _bar("trying", console, transient=True) as update:
        yield lambda state: update(state.number, state.count, f"{state.tried.name}: {state.tried.outcome}")


@contextmanager
def explaining_bar(console: Console) -> Iterator[Callable[[ExplainStep], None]]:
    """A bar that goes away at the end; yields what `explain_run` calls."""
    with _bar("explaining", console, transient=True) as update:
        yield lambda state: update(state.done, state.of, state.what)


def told_estimate(console: Console) -> Callable[[Estimate], None]:
    """Prints about how long an audit will take, before it begins."""

    def tell(estimate: Estimate) -> None:
        training = ""
        if estimate.oracles:
            training = f"{estimate.oracles} oracles to train, about {duration(estimate.oracle_seconds)} each, "
        if estimate.rivals:
            each = duration(estimate.rival_seconds / estimate.rivals)
            training += f"{estimate.rivals} rivals of the erased network to train, about {each} each, "
        attacks = f"attacks of about {duration(estimate.attack_seconds)}"
        say(console, f"{training}{'and ' if training else ''}{attacks}; finished parts are kept")

    return tell


def told_frontier(console: Console) -> Callable[[Estimate], None]:
    """Prints about how long a frontier will take, before it begins."""

    def tell(estimate: Estimate) -> None:
        training = f"{estimate.oracles} oracles and {estimate.rivals} other networks to train"
        say(
            console,
            f"{training}, {duration(estimate.attack_seconds)} to measure: about {duration(estimate.seconds)} in all; "
            "what is finished is kept",
        )

    return tell


def told_erasing(console: Console) -> Callable[[Erasing], None]:
    """Prints what an erasure will do, before it begins."""

    def tell(plan: Erasing) -> None:
        say(
            console,
            f"{', '.join(plan.reset)} drawn anew; {plan.steps} steps of {plan.training.batch_size} of the "
            f"{len(plan.retained.train)} images that stay",
        )

    return tell


def duration(seconds: float) -> str:
    """45.2 as "45 s", 150 as "3 min", 9000 as "2.5 h"."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def _bar(what: str, console: Console, transient: bool = False) -> Iterator[Callable[..., None]]:
    """A bar from the first update on; yields what takes (done, total, text). A transient one goes away
    when all is done.

    Nothing is written before the first update, so that bars can take turns on one terminal.
    """
    columns = (bars.TextColumn(what), bars.BarColumn(), bars.TaskProgressColumn())
    text_column = bars.TextColumn("{task.fields[text]}", markup=False)
    bar = bars.Progress(*columns, text_column, bars.TimeRemainingColumn(), console=console, transient=transient)
    task = bar.add_task("", text="", total=None)

    def update(done: float, total: int, text: str = "") -> None:
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


def _table(card: Scorecard, title: str) -> Table:
    # Text, since names may hold what rich would take for markup.
    table = Table(title=Text(title, "table.title"), caption=card.caption)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == HEADINGS[0] else "right")
    for section in card.sections():
        for row in section:
            table.add_row(*map(Text, row))
        table.add_section()
    return table


def print_evaluation(console: Console, result: Evaluation, title: str) -> None:
    """Print a scorecard, and what BatchNorm statistics taken anew leave of it."""
    console.print(_table(result.scorecard, title))
    anew = result.restandardised
    if anew is not None:
        worst = result.scorecard.class_names[anew.worst_selection[0]]
        say(
            console,
            f"With BatchNorm statistics taken anew under each selection: Acc_f {anew.mean_forget:.1%}, at worst "
            f"{anew.worst_forget:.1%} ({worst}); Acc_r {anew.mean_retain:.1%}",
        )


def print_erased(console: Console, found: ErasedAccuracies, title: str) -> None:
    """Print each class's accuracy before and after an erasure."""
    table = Table(title=Text(title, "table.title"))
    table.add_column("class")
    for heading in ("original", "erased", "points"):
        table.add_column(heading, justify="right")
    for c, (before, after) in enumerate(zip(found.original, found.erased, strict=True)):
        name = f"{found.class_names[c]}{' (erased)' if c in found.forget else ''}"
        table.add_row(*map(Text, (name, f"{before:.1%}", f"{after:.1%}", f"{100 * (after - before):+.1f}")))
    before, after = found.mean_retain(found.original), found.mean_retain(found.erased)
    table.add_section()
    table.add_row("mean of those that stay", f"{before:.1%}", f"{after:.1%}", f"{100 * (after - before):+.1f}")
    console.print(table)


def print_audit(console: Console, card: AuditCard, title: str) -> None:
    """Print an audit's card."""
    table = Table(title=Text(title, "table.title"), caption=card.summary)
    words = ["broken" if row.broken else row.verdict.word for row in card.rows]
    _add_figures(table, card.headings, card.cells(), words)
    console.print(table)


def print_means(console: Console, found: Means) -> None:
    """Print means over audits."""
    table = Table(caption=found.summary)
    _add_figures(table, found.headings, found.cells(), [row.verdict for row in found.rows])
    console.print(table)


def _add_figures(table: Table, headings: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[str]) -> None:
    """Rows that begin with their attack, a section for each, in the style of their verdict."""
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("attack", "figure", "level", "verdict") else "right")
    previous = None
    for cells, word in zip(rows, words, strict=True):
        if previous not in (None, cells[0]):
            table.add_section()
        table.add_row(*map(Text, cells), style=_STYLES.get(word))
        previous = cells[0]


def print_frontier(console: Console, found: Frontier, title: str) -> None:
    """Print the means of a frontier over its sets of classes."""
    table = Table(title=Text(title, "table.title"))
    for heading in FRONTIER_HEADINGS:
        table.add_column(heading, justify="left" if heading in ("without", "network") else "right")
    for row in found.rows():
        table.add_row(*map(Text, row))
    console.print(table)


def print_comparison(console: Console, comparison: Comparison, title: str) -> None:
    """Print the lines of a comparison."""
    table = Table(title=Text(title, "table.title"))
    for heading in COMPARE_HEADINGS:
        table.add_column(heading, justify="left" if heading in ("method", "settings") else "right")
    for line in comparison.lines:
        table.add_row(*map(Text, line.cells()))
    console.print(table)
