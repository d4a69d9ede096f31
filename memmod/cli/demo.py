"""The demo: a ResNet and a ViT forget each of the ten digits; a report shows what became of them."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from memmod.cli.terminal import print_evaluation, training_bar, unlearning_bar
from memmod.runs import commands
from memmod.runs.commands import DataOptions, UnlearnOptions
from memmod.runs.folder import RunFolder
from memmod.runs.report import report_run

DATA = "digits"
MODELS = {"resnet": "ResNet", "vit": "ViT"}


@dataclass(frozen=True)
class Settings:
    """How much the demo trains and measures; None is the recipe's."""

    epochs: int | None = None
    steps: int | None = None
    set_sizes: tuple[int, ...] = (2, 3)


def run_demo(
    out: str | os.PathLike[str], seed: int = 0, console: Console | None = None, settings: Settings | None = None
) -> Path:
    """Run the demo in the folder `out`, replacing an earlier one, and return the path of its report.

    The folder then holds ordinary runs, which `memmod evaluate` and `memmod bake` take: resnet, resnet-unlearned, vit,
    vit-unlearned.

    Raises:
        MemmodError: the folder holds something else than a demo.
    """
    console = console or Console()
    settings = settings or Settings()
    started = time.monotonic()
    run = RunFolder.start(out, "demo", {"data": DATA, "models": list(MODELS), "seed": seed}, overwrite=_is_demo(out))
    metrics = {}
    for model, title in MODELS.items():
        console.rule(title)
        metrics[model] = _network(run.path, model, title, seed, console, settings)
    seconds = time.monotonic() - started
    run.write_metrics({**metrics, "seconds": seconds})
    facts = {"time": f"{seconds:.0f} s, {torch.get_num_threads()} CPU thread(s)"}
    return report_run(run.path, facts=facts).page


def _is_demo(out: str | os.PathLike[str]) -> bool:
    """Whether a folder holds something, which has to be an earlier demo: `RunFolder` refuses what is none of ours."""
    path = Path(out)
    return path.is_dir() and any(path.iterdir())


def _network(folder: Path, model: str, title: str, seed: int, console: Console, settings: Settings) -> dict[str, Any]:
    """Train, unlearn and evaluate one network; what the evaluation found, as JSON values."""
    changes = {"seed": seed} | ({"epochs": settings.epochs} if settings.epochs else {})
    with training_bar(console) as progress:
        base = commands.train(
            folder / model,
            DataOptions(DATA),
            model,
            changes=changes,
            overwrite=(folder / model).exists(),
            progress=progress,
        )
    changes = {"seed": seed} | ({"steps": settings.steps} if settings.steps else {})
    out = folder / f"{model}-unlearned"
    options = UnlearnOptions(changes=changes)
    with unlearning_bar(base.meta["class_names"], console) as progress:
        unlearned = commands.unlearn(base, out, options, overwrite=out.exists(), progress=progress)
    evaluation = commands.evaluate(unlearned, unlearned.load_data(), seed=seed, set_sizes=settings.set_sizes)
    print_evaluation(console, evaluation, title)
    return evaluation.to_dict()
