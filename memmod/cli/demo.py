"""The demo: a ResNet and a ViT forget each of the ten digits; a report shows what became of them."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from memmod.cli.terminal import print_evaluation, training_bar, unlearning_bar
from memmod.evaluation.scorecard import percent
from memmod.report import LayerNote, Memory, Method, Network, Report, write_report
from memmod.runs import commands
from memmod.runs.commands import DataOptions, Evaluation, UnlearnOptions
from memmod.runs.folder import RunFolder
from memmod.runs.restore import Unlearned

DATA = "digits"
MODELS = {"resnet": "ResNet", "vit": "ViT"}
REPORT = "report.html"


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
    networks, metrics = [], {}
    for model, title in MODELS.items():
        console.rule(title)
        network, metrics[model] = _network(run.path, model, title, seed, console, settings)
        networks.append(network)
    seconds = time.monotonic() - started
    run.write_metrics({**metrics, "seconds": seconds})
    facts = {
        "data": "digits of scikit-learn: 8 × 8 pixels, half of them held out for testing",
        "seed": str(seed),
        "time": f"{seconds:.0f} s, {torch.get_num_threads()} CPU thread(s)",
        **{name: version for name, version in run.versions.items() if name in ("memmod-torch", "torch", "python")},
    }
    names = metrics[next(iter(MODELS))]["class_names"]
    report = Report("Two classifiers forget each digit in turn", "handwritten digits", names, networks, facts)
    path = run.file(REPORT)
    write_report(report, path)
    return path


def _is_demo(out: str | os.PathLike[str]) -> bool:
    """Whether a folder holds something, which has to be an earlier demo: `RunFolder` refuses what is none of ours."""
    path = Path(out)
    return path.is_dir() and any(path.iterdir())


def _network(
    folder: Path, model: str, title: str, seed: int, console: Console, settings: Settings
) -> tuple[Network, dict]:
    changes = {"seed": seed} | ({"epochs": settings.epochs} if settings.epochs else {})
    clock = time.monotonic()
    with training_bar(console) as progress:
        base = commands.train(
            folder / model,
            DataOptions(DATA),
            model,
            changes=changes,
            overwrite=(folder / model).exists(),
            progress=progress,
        )
    trained = time.monotonic() - clock
    changes = {"seed": seed} | ({"steps": settings.steps} if settings.steps else {})
    out = folder / f"{model}-unlearned"
    options = UnlearnOptions(changes=changes)
    with unlearning_bar(base.meta["class_names"], console) as progress:
        unlearned = commands.unlearn(base, out, options, overwrite=out.exists(), progress=progress)
    evaluation = commands.evaluate(unlearned, unlearned.load_data(), seed=seed, set_sizes=settings.set_sizes)
    print_evaluation(console, evaluation, title)
    unlearning = unlearned.run.metrics()["seconds"]
    facts = {
        "accuracy before": percent(base.meta["metrics"]["accuracy"]),
        "parameters": f"{sum(p.numel() for p in base.model.parameters()):,}",
        "memory entries": f"{sum(m.numel() for m in unlearned.wf.memory_parameters()):,}",
        "training the base": f"{trained:.0f} s",
        "unlearning all classes": f"{unlearning:.0f} s",
        **_more_facts(evaluation),
    }
    return describe(title, unlearned, evaluation, facts), evaluation.to_dict()


def _more_facts(evaluation: Evaluation) -> dict[str, str]:
    facts = {
        f"random sets of {size}": f"Acc_f {percent(methods[0].mean_forget)}, Acc_r {percent(methods[0].mean_retain)}"
        for size, methods in evaluation.scorecard.sets.items()
    }
    anew = evaluation.restandardised
    if anew is not None:
        worst, retained = percent(anew.worst_forget), percent(anew.mean_retain)
        facts["statistics taken anew"] = f"Acc_f at worst {worst}, Acc_r {retained}"
    return facts


def describe(title: str, unlearned: Unlearned, evaluation: Evaluation, facts: dict[str, str]) -> Network:
    """What the report shows of one unlearned network."""
    methods = [Method(m.method, m.acc_forget, m.acc_retain) for m in evaluation.scorecard.methods]
    memories = [
        Memory(name.removesuffix(".memory"), gates.cpu().numpy()) for name, gates in unlearned.wf.gates().items()
    ]
    notes = [LayerNote(row.name, row.action, row.reason) for row in unlearned.wf.summary().rows]
    return Network(title, methods, memories, notes, facts)
