"""What `memmod frontier` does: erasures and trainings from scratch at several budgets, measured by the same oracles."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from memmod.data import Dataset
from memmod.errors import RunError, SelectionError
from memmod.evaluation.attacks.attack import Attack, Case, Subject
from memmod.evaluation.attacks.probes import PROBING, recall
from memmod.evaluation.audit.audit import seconds_per_image
from memmod.evaluation.audit.card import markdown_table, number
from memmod.evaluation.audit.outputs import ACCURACY, OUTPUTS
from memmod.evaluation.features import PENULTIMATE
from memmod.files.atomic import write_atomically
from memmod.files.parts import Parts
from memmod.files.state_hash import state_sha256
from memmod.report.panels import Curve, Panel, panels
from memmod.runs.audits import PARTS, AuditOptions, Estimate, data_hash, estimated, make_case
from memmod.runs.device import usable_device
from memmod.runs.folder import versions, write_json
from memmod.runs.kept import Recipe, TrainingStep, each_trained
from memmod.runs.oracles import base_training, missing, oracle_folder, oracle_seeds, retrain
from memmod.runs.restore import Base, Unlearned
from memmod.runs.rivals import ERASED, Erasure, from_scratch, recipe
from memmod.unlearning.erase import EraseConfig, default_erasing, plan_erasure

# Raised whenever the same networks would give other figures.
VERSION = 2
CARD, TABLE, PICTURE = "frontier.json", "frontier.md", "frontier.svg"
FROM_SCRATCH, ORACLES = "from scratch", "oracles"
NETWORKS = (ERASED, FROM_SCRATCH)
HEADINGS = ("without", "network", "budget", "Acc_r, points", "probe excess", "total variation", "seconds")
# Classes that are erased at once, by number and in order.
Set = tuple[int, ...]
# Forward passes over an image behind a network's figures come from these.
MEASURED: tuple[Attack, ...] = (ACCURACY, OUTPUTS, PROBING)


@dataclass(frozen=True)
class FrontierOptions:
    """Which points of the frontier to measure, and how.

    Args:
        budgets: images of each training, as shares of those that the base's training saw.
        seeds: networks at each point; their figures are averaged.
        oracles: networks retrained without the class, by which each figure is judged; at least 2.
        quick: probes on fewer images.
        threshold: gates of the baked network below it are exactly 0.
        device: where networks are trained and run.
        folder: where oracles, and all networks trained here, are kept; default: beside the base.
    """

    budgets: tuple[float, ...] = (0.05, 0.1, 0.2)
    seeds: int = 1
    oracles: int = 3
    quick: bool = False
    threshold: float = 0.3
    device: str = "cpu"
    folder: Path | None = None

    def __post_init__(self) -> None:
        if not self.budgets or len(set(self.budgets)) < len(self.budgets):
            raise RunError(f"budgets are {list(self.budgets)}; name at least one, and none twice")
        if self.seeds < 1:
            raise RunError(f"seeds is {self.seeds}; a point needs at least 1 network")
        if self.oracles < 2:
            raise RunError(f"oracles is {self.oracles}; a range needs at least 2")


@dataclass(frozen=True)
class Figures:
    """What is measured of one network on test images.

    Args:
        acc_r: accuracy on the classes that stay.
        recall: of the class, by a linear probe on penultimate features.
        total_variation: of mean predictions on the class's images, to each oracle (of an oracle: to each other one),
            and averaged.
    """

    acc_r: float
    recall: float
    total_variation: float


@dataclass(frozen=True)
class Point:
    """One network.

    Args:
        forget: the classes that it does without.
        network: "erased" or "from scratch".
        budget: its share of the base's training.
        seed: of its training.
        figures: what was measured.
        seconds: of its training; nan where they were not measured.
        steps: of its training.
        folder: its run folder's name.
    """

    forget: tuple[int, ...]
    network: str
    budget: float
    seed: int
    figures: Figures
    seconds: float
    steps: int
    folder: str


@dataclass(frozen=True)
class Line:
    """A mean over seeds, and over sets of classes where there are several: differences to the oracles' mean.

    Args:
        points: Acc_r in percentage points.
        excess: the probe's recall.
    """

    points: float
    excess: float
    total_variation: float
    seconds: float

    def cells(self) -> tuple[str, ...]:
        """As the last of `HEADINGS` call them."""
        seconds = "-" if math.isnan(self.seconds) else f"{self.seconds:.0f}"
        return (f"{self.points:+.1f}", f"{self.excess:+.3f}", number(self.total_variation), seconds)


@dataclass(frozen=True)
class Frontier:
    """Every point and every oracle of the sets of classes, with the sets' names, and the folder that holds them."""

    folder: Path
    sets: dict[Set, str]
    budgets: tuple[float, ...]
    points: tuple[Point, ...]
    oracles: dict[Set, tuple[Figures, ...]]

    def line(self, network: str, budget: float, sets: Sequence[Set]) -> Line:
        """The mean of one kind of network at one budget, over sets of classes."""
        chosen = [p for p in self.points if p.network == network and p.budget == budget and p.forget in sets]
        return Line(
            _mean([100 * (p.figures.acc_r - self._oracles(p.forget, "acc_r")) for p in chosen]),
            _mean([p.figures.recall - self._oracles(p.forget, "recall") for p in chosen]),
            _mean([p.figures.total_variation for p in chosen]),
            _mean([p.seconds for p in chosen]),
        )

    def band(self, figure: str, sets: Sequence[Set]) -> tuple[float, float]:
        """From the lowest to the highest oracle, as differences to their mean, averaged over sets."""
        found = [[getattr(one, figure) - self._oracles(each, figure) for one in self.oracles[each]] for each in sets]
        return _mean([min(values) for values in found]), _mean([max(values) for values in found])

    def rows(self, sets: Sequence[Set] | None = None) -> list[tuple[str, ...]]:
        """As `HEADINGS` call them: the mean over the sets, or over some of them, and the oracles' range."""
        chosen = tuple(self.sets) if sets is None else tuple(sets)
        name = self.sets[chosen[0]] if len(chosen) == 1 else f"mean of {len(chosen)}"
        rows = [
            (name, network, f"{100 * budget:g} %", *self.line(network, budget, chosen).cells())
            for network in NETWORKS
            for budget in self.budgets
        ]
        acc_r, recall = self.band("acc_r", chosen), self.band("recall", chosen)
        variation = _mean([one.total_variation for forget in chosen for one in self.oracles[forget]])
        return [
            *rows,
            (
                name,
                ORACLES,
                "100 %",
                f"{100 * acc_r[0]:+.1f} to {100 * acc_r[1]:+.1f}",
                f"{recall[0]:+.3f} to {recall[1]:+.3f}",
                number(variation),
                "",
            ),
        ]

    def _oracles(self, forget: Set, figure: str) -> float:
        return _mean([getattr(one, figure) for one in self.oracles[forget]])


@dataclass(frozen=True)
class Measured:
    """One network measured: `part` of `parts`, what it was, and the names of the classes that it does without."""

    part: int
    parts: int
    network: str
    without: str


def frontier(
    unlearned: Unlearned,
    forget: Sequence[Sequence[int]],
    dataset: Dataset,
    out: str | os.PathLike[str],
    options: FrontierOptions | None = None,
    *,
    on_estimate: Callable[[Estimate], None] = lambda _estimate: None,
    on_oracle: Callable[[TrainingStep], None] | None = None,
    on_network: Callable[[TrainingStep], None] | None = None,
    on_measured: Callable[[Measured], None] = lambda _measured: None,
) -> Frontier:
    """Erase each set of classes at several budgets, train from scratch on as many images, and measure both.

    Settings beside the budget are `default_erasing`'s. Networks are kept before they are measured, by content, and so
    are figures: a call that was interrupted goes on where it was, and an audit finds the networks there.

    Args:
        forget: the sets of classes, each erased by itself, its classes at once.
        dataset: what the base was trained on.
        out: folder of frontier.json, frontier.md and frontier.svg.
        on_estimate: called once before the long part.
        on_oracle, on_network: called after each step of training an oracle, or another network.
        on_measured: called after each network.

    Raises:
        SelectionError: no set, or an empty one.
        MemmodError: a budget of fewer than 50 steps, as `plan_erasure`; a base that cannot be retrained; a device that
            cannot be used.
    """
    options = options or FrontierOptions()
    options = replace(options, budgets=tuple(sorted(options.budgets)))
    base, device = unlearned.base, usable_device(options.device)
    sets = {_as_set(one): ", ".join(dataset.class_names[c] for c in _as_set(one)) for one in forget}
    if not sets or () in sets:
        raise SelectionError("no class is named, so that there is nothing to erase: name at least one")
    place = options.folder or oracle_folder(base)
    work = [one for classes in sets for one in _work(unlearned, classes, dataset, options, place)]
    seeds = oracle_seeds(base, options.oracles)
    on_estimate(_estimate(base, dataset, work, tuple(sets), seeds, options, place, device))
    judges = {
        classes: tuple(
            oracle.network.to(device)
            for oracle in retrain(base, classes, seeds, dataset, place, device=options.device, progress=on_oracle)
        )
        for classes in sets
    }
    recipes = [one.recipe for one in work]
    for _network in each_trained(recipes, dataset, device, on_network):
        pass
    bench = _Bench(base, dataset, judges, options, Parts(place / PARTS), data_hash(dataset), unlearned.wf.config.logits)
    parts = len(work) + len(sets) * options.oracles

    def told(part: int, network: str, classes: Set) -> None:
        on_measured(Measured(part, parts, network, sets[classes]))

    oracles: dict[Set, tuple[Figures, ...]] = {}
    for number_, classes in enumerate(sets):
        oracles[classes] = tuple(bench.figures(oracle, classes) for oracle in judges[classes])
        told((number_ + 1) * options.oracles, ORACLES, classes)
    points = []
    for one, kept in zip(work, each_trained(recipes, dataset, device), strict=True):
        seconds = kept.metrics.get("seconds")
        points.append(
            Point(
                one.forget,
                one.network,
                one.budget,
                one.erasure.plan.training.seed,
                bench.figures(kept.network.to(device), one.forget),
                math.nan if seconds is None else seconds,
                one.erasure.plan.steps,
                kept.folder.name,
            )
        )
        told(len(sets) * options.oracles + len(points), one.network, one.forget)
    result = Frontier(Path(out), sets, options.budgets, tuple(points), oracles)
    _write(result, unlearned, dataset, options)
    return result


def _as_set(classes: Sequence[int]) -> Set:
    return tuple(sorted(set(classes)))


@dataclass(frozen=True)
class _Work:
    forget: Set
    network: str
    budget: float
    erasure: Erasure
    recipe: Recipe


def _work(unlearned: Unlearned, forget: Set, dataset: Dataset, options: FrontierOptions, place: Path) -> list[_Work]:
    """Every network without a set of classes that is to be trained, planned before any is."""
    base = unlearned.base
    training = base_training(base)
    defaults = default_erasing(base.model, training)
    x = dataset.test.batch(torch.arange(min(len(dataset.test), 64)))
    plans = {
        (budget, seed): plan_erasure(
            base.model, dataset, forget, training, EraseConfig(**{**asdict(defaults), "budget": budget, "seed": seed})
        )
        for budget in options.budgets
        for seed in range(options.seeds)
    }
    baked = unlearned.wf.bake(set(forget), options.threshold, "base", x)
    work = []
    for (budget, _seed), plan in plans.items():
        erasures = (Erasure(ERASED, lambda: copy.deepcopy(baked), plan), from_scratch(base, plan))
        for network, erasure in zip(NETWORKS, erasures, strict=True):
            work.append(_Work(forget, network, budget, erasure, recipe(erasure, base, forget, place)))
    return work


def _estimate(
    base: Base,
    dataset: Dataset,
    work: Sequence[_Work],
    sets: Sequence[Set],
    seeds: Sequence[int],
    options: FrontierOptions,
    place: Path,
    device: torch.device,
) -> Estimate:
    untrained = sum(missing(base, forget, seeds, dataset, place) for forget in sets)
    due = [one.erasure.plan.images for one in work if not one.recipe.finished]
    case = _case(base, dataset, sets[0], (base.model,) * options.oracles, options, None)
    networks = len(work) + len(sets) * options.oracles
    passes = networks * sum(attack.cost(case) for attack in MEASURED)
    measuring = passes * seconds_per_image(Subject("", base.model), case)
    return estimated(base, dataset, untrained, due, measuring, device)


def _case(
    base: Base,
    dataset: Dataset,
    forget: Set,
    oracles: tuple[nn.Module, ...],
    options: FrontierOptions,
    logits_path: str | None,
) -> Case:
    return make_case(base, forget, dataset, oracles, AuditOptions(quick=options.quick), logits_path)


@dataclass
class _Bench:
    base: Base
    dataset: Dataset
    oracles: dict[Set, tuple[nn.Module, ...]]
    options: FrontierOptions
    parts: Parts
    data: str
    logits_path: str | None

    def figures(self, network: nn.Module, forget: Set) -> Figures:
        """What is measured of a network, an oracle beside the other oracles; kept by content."""
        oracles = tuple(oracle for oracle in self.oracles[forget] if oracle is not network)
        key = {
            "frontier": VERSION,
            "versions": [attack.version for attack in MEASURED],
            "network": state_sha256(network),
            "oracles": [state_sha256(oracle) for oracle in oracles],
            "forget": list(forget),
            "data": self.data,
            "quick": self.options.quick,
            "torch": torch.__version__,
        }
        stored = self.parts.get(key)
        if stored is None:
            case = _case(self.base, self.dataset, forget, oracles, self.options, self.logits_path)
            stored = asdict(_measure(Subject("", network), case))
            self.parts.put(key, stored)
        return Figures(**stored)


def _measure(subject: Subject, case: Case) -> Figures:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        return Figures(
            ACCURACY.run(subject, case)["Acc_r"].value,
            recall(subject.network, case, PENULTIMATE),
            OUTPUTS.run(subject, case)["total variation"].value,
        )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _write(result: Frontier, unlearned: Unlearned, dataset: Dataset, options: FrontierOptions) -> None:
    base, names = unlearned.base, list(result.sets.values())
    settings = {
        "run": unlearned.run.path.name,
        "base": base.folder.name,
        "model": base.meta["model"],
        "data": dataset.name,
        "sets": [[dataset.class_names[c] for c in forget] for forget in result.sets],
        "budgets": list(result.budgets),
        "seeds": options.seeds,
        "oracles": options.oracles,
        "quick": options.quick,
        "threshold": options.threshold,
        "versions": versions(),
    }
    write_json(result.folder / CARD, {**settings, **_figures_as_json(result)})
    several = [result.rows()] if len(names) > 1 else []
    tables = [*several, *(result.rows([forget]) for forget in result.sets)]
    text = (
        f"# Accuracy and erasure by budget: {'; '.join(names)}\n\n"
        f"{base.meta['model']} on {dataset.name}, run `{unlearned.run.path.name}`; each set of classes by itself, "
        f"{options.seeds} {'seed' if options.seeds == 1 else 'seeds, averaged'}{', quick' if options.quick else ''}. "
        "A budget is the share of the base's training that a network's training sees. Acc_r and the recall of the "
        "classes by a linear probe on penultimate features are differences to the mean of "
        f"{options.oracles} networks retrained without the classes, whose range the last line of each table gives; "
        "total variation is of mean predictions on the classes' images, to these networks. Seconds are of training.\n"
    )
    for rows in tables:
        text += f"\n{markdown_table(HEADINGS, rows)}\n"
    text += f"\nVersions: {', '.join(f'{name} {version}' for name, version in versions().items())}.\n"
    write_atomically(result.folder / TABLE, text.encode())
    write_atomically(result.folder / PICTURE, picture(result, f"{base.meta['model']} on {dataset.name}"))


def _figures_as_json(result: Frontier) -> dict[str, Any]:
    return {
        "oracle_figures": {
            result.sets[forget]: [asdict(one) for one in found] for forget, found in result.oracles.items()
        },
        "points": [
            {
                "without": result.sets[p.forget],
                **{name: value for name, value in asdict(p).items() if name not in ("forget", "figures")},
                **asdict(p.figures),
                **{name: value for name, value in asdict(_alone(result, p)).items() if name in ("points", "excess")},
            }
            for p in result.points
        ],
        "means": [
            {"network": network, "budget": budget, **asdict(result.line(network, budget, tuple(result.sets)))}
            for network in NETWORKS
            for budget in result.budgets
        ],
    }


def _alone(result: Frontier, point: Point) -> Line:
    return replace(result, points=(point,)).line(point.network, point.budget, [point.forget])


def picture(result: Frontier, what: str) -> bytes:
    """Acc_r and the probe's excess by budget, means over the sets, as an SVG file."""
    sets = tuple(result.sets)
    lines = {n: [result.line(n, budget, sets) for budget in result.budgets] for n in NETWORKS}
    low, high = result.band("acc_r", sets)
    names = list(result.sets.values())
    shown = "; ".join(names)
    shown = shown if len(shown) <= 60 else f"{len(names)} sets of classes"
    return panels(
        f"{what}, without {shown}",
        "images of the training, share of the base's",
        result.budgets,
        [
            Panel(
                "Accuracy on the other classes, to oracles (points)",
                [Curve(name, [line.points for line in found]) for name, found in lines.items()],
                (100 * low, 100 * high),
            ),
            Panel(
                "Recall of the classes by a probe, above oracles",
                [Curve(name, [line.excess for line in found]) for name, found in lines.items()],
                result.band("recall", sets),
            ),
        ],
        "range of the oracles",
    )
