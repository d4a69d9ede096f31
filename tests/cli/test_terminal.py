"""What is printed as it is: names that rich, HTML or a terminal's encoding would read otherwise."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from memmod.cli import main as cli
from memmod.cli.terminal import (
    FEW_IMAGES,
    checking_bar,
    evaluation_bar,
    print_evaluation,
    training_bar,
    unlearning_bar,
)
from memmod.evaluation import Accuracies, Scorecard
from memmod.report import Memory, Report, Run, render
from memmod.report.library import bundle
from memmod.unlearning.monitor import Evaluation as Validation
from memmod.unlearning.objectives import Losses
from memmod.unlearning.progress import Progress

NAMES = ("[/red]", "cat [old]", "[bold]x", ":cat:", "a\\[b", "<b>&")


def scorecard(names: tuple[str, ...] = NAMES) -> Scorecard:
    singles = tuple((c,) for c in range(len(names)))
    halves = (0.5,) * len(names)
    methods = tuple(Accuracies(name, singles, halves, halves) for name in ("memmod", "original", "logit mask"))
    return Scorecard(12, names, 0.5, methods, {})


def console() -> Console:
    return Console(file=io.StringIO(), width=200, force_terminal=False)


def test_names_in_a_scorecard() -> None:
    from memmod.runs.commands import Evaluation

    out = console()
    print_evaluation(out, Evaluation(scorecard(), scorecard().memmod), "runs [/new] :cat:")
    text = out.file.getvalue()
    assert all(f" {name} " in text for name in NAMES) and "runs [/new] :cat:" in text
    assert "at worst 50.0% ([/red])" in text
    assert all(f"\n{name} " in str(scorecard()) for name in NAMES)


@pytest.mark.parametrize("worst", range(len(NAMES)))
def test_names_in_the_progress_of_a_round(worst: int) -> None:
    out = console()
    accuracies = tuple(float(c == worst) for c in range(len(NAMES)))
    with unlearning_bar(NAMES, out) as progress:
        progress(Progress(1, 3, evaluation=Validation(1, {}, accuracies, 0.5)))
    assert f"worst class {NAMES[worst]} 100.0%" in out.file.getvalue()


@pytest.mark.slow
def test_names_in_the_log() -> None:
    program = (
        "import logging; from memmod.cli.options import prepare; prepare(1); "
        "logging.getLogger('memmod.data').warning('folder:a [/red] :cat: [bold]b')"
    )
    environment = os.environ | {"COLUMNS": "200"}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and "folder:a [/red] :cat: [bold]b" in result.stderr


def test_names_in_the_report() -> None:
    memories = [Memory("fc", np.ones((len(NAMES), 4)))]
    html = render(Report("t", [Run("n", "f", "unlearn", "m", "d", NAMES, memories=memories, facts={"<i>": "[/x]"})]))
    text = html.replace(bundle(), "")
    assert "<b>" not in text.replace("</b>", "") and "&lt;b&gt;&amp;" in text and "<i>" not in text
    assert all(name in text for name in NAMES[:-1])


@pytest.mark.parametrize("value", ["[/red]", "[bold]x"])
def test_values_in_usage_errors(value: str) -> None:
    for arguments in (
        ["evaluate", "run", "--sets", value],
        [value],
        ["train", f"--{value}"],
    ):
        result = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "200"})
        assert result.exit_code == 2 and value in result.output, (arguments, result.output, result.exception)
    result = CliRunner().invoke(cli.app, ["train", "--data", value])
    assert result.exit_code == 1 and repr(value) in result.output


@pytest.mark.slow
def test_names_that_the_encoding_lacks_are_escaped(tmp_path: Path) -> None:
    program = "import sys; from memmod.cli import main as cli; cli.app = lambda: print('cat é 猫'); cli.main()"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "cat \\xe9 \\u732b\n"), result.stderr


def test_bars_write_nothing_before_their_first_update() -> None:
    out = console()
    with training_bar(out), evaluation_bar(9, out), checking_bar(out) as checked:
        checked(1, FEW_IMAGES)
    assert out.file.getvalue() == ""
    with checking_bar(out) as checked:
        checked(1, FEW_IMAGES + 1)
    with training_bar(out) as progress:
        progress(1, 2, 0.25)
    assert "loss 0.250" in out.file.getvalue()


def test_the_unlearning_bar_shows_losses_and_the_worst_class():
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=160, color_system=None)
    with unlearning_bar(("cat [old]", "dog"), console) as progress:
        assert shown.getvalue() == ""
        progress(Progress(0, 12, evaluation=Validation(0, {}, (0.75, 0.25), 0.5)))
        progress(Progress(12, 12, losses=Losses(1.5, 0.5, 0.75, 0.25)))
    text = shown.getvalue()
    assert "100%" in text and "loss 1.500 (retain 0.500, forget 0.750)" in text
    assert "worst class cat [old] 75.0%, retained 50.0%" in text
