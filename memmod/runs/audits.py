"""What `memmod audit` does: oracles, attacks, and the card of both in the run folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from memmod.data import Dataset
from memmod.errors import ModelError, RunError, SelectionError
from memmod.evaluation.attacks import ATTACKS
from memmod.evaluation.attacks.attack import Attack, Case, Subject
from memmod.evaluation.audit import AuditCard, Bench, Progress, audit, expected_seconds
from memmod.evaluation.audit.outputs import ACCURACY, OUTPUTS
from memmod.evaluation.audit.representation import CKA
from memmod.evaluation.controls import LogitMask
from memmod.files.atomic import write_atomically
from memmod.files.parts import Parts
from memmod.runs.device import usable_device
from memmod.runs.erase import Erased
from memmod.runs.folder import slug, versions, write_json
from memmod.runs.kept import Recipe, TrainingStep, each_trained
from memmod.runs.oracles import Oracle, base_training, missing, oracle_folder, oracle_seeds, retrain
from memmod.runs.restore import Base, Unlearned
from memmod.runs.rivals import BAKED, FINE_TUNING, FROM_SCRATCH, Erasure, fine_tuning, from_scratch, recipe
from memmod.training import LAYOUT, augment

AUDITS = "audits"
# Beside the oracles, whose figures serve every run of their base.
PARTS = "parts"
CARD = "audit.json"
TABLE = "audit.md"
# Steps of the base's training that are timed to say how long an oracle will take.
TIMED_STEPS = 3

EVERYTHING: tuple[Attack, ...] = (ACCURACY, OUTPUTS, CKA, *ATTACKS)


@dataclass(frozen=True)
class AuditOptions:
    """How to audit.

    Args:
        seeds: oracles that the intervals are made from; one more is held out to try the attacks on.
        quick: fewer images, steps and shadow models.
        threshold: gates of the baked network below it are exactly 0.
        seed: of every draw of the attacks.
        device: where networks run.
        oracles: where oracles are kept; default: beside the base.
        rivals: set an erased network beside the suppressed one that it came from, the original fine-tuned, and a
            training from scratch, all on as many images; a run of unlearning has no such rivals.
    """

    seeds: int = 3
    quick: bool = False
    threshold: float = 0.3
    seed: int = 0
    device: str = "cpu"
    oracles: Path | None = None
    rivals: bool = True

    def __post_init__(self) -> None:
        if self.seeds < 2:
            raise RunError(f"seeds is {self.seeds}; an interval needs at least 2 oracles")


@dataclass(frozen=True)
class Audited:
    """An audit: its card, and the folder that holds it."""

    folder: Path
    card: AuditCard


@dataclass(frozen=True)
class Estimate:
    """About how long an audit will take, in seconds: for networks that are not trained yet, and for the attacks.

    `oracle_seconds` is of each oracle, `rival_seconds` of all rivals.
    """

    oracles: int
    oracle_seconds: float
    attack_seconds: float
    rivals: int = 0
    rival_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        return self.oracles * self.oracle_seconds + self.rival_seconds + self.attack_seconds


def audit_run(
    run: Unlearned | Erased,
    forget: Sequence[int],
    dataset: Dataset,
    options: AuditOptions | None = None,
    *,
    attacks: Sequence[Attack] = EVERYTHING,
    on_estimate: Callable[[Estimate], None] = lambda _estimate: None,
    on_oracle: Callable[[TrainingStep], None] | None = None,
    on_rival: Callable[[TrainingStep], None] | None = None,
    on_part: Callable[[Progress], None] = lambda _progress: None,
) -> Audited:
    """Audit what a run still knows of some classes, and write audit.json and audit.md into its folder.

    Of a run of unlearning that is its baked network and its memories, of an erased one the network.

    Finished oracles and parts are kept by content: a call that was interrupted goes on where it was.

    Args:
        forget: the classes that should be gone, at least one; two must stay.
        on_estimate: called once before the long part.
        on_oracle: called after each step of training an oracle.
        on_rival: called after each step of training a rival of an erased network.
        on_part: called after each attack on each network.

    Raises:
        MemmodError: classes that the base never knew or that were not erased, a base that cannot be retrained, data of
            other classes.
    """

    options = options or AuditOptions()
    forget = tuple(sorted(set(forget)))
    base, device = run.base, usable_device(options.device)
    suspect = _suspect(run, forget, dataset, options.threshold)
    wf = run.wf if isinstance(run, Unlearned) else run.unlearned.wf
    seeds = oracle_seeds(base, options.seeds + 1)
    place = options.oracles or oracle_folder(base)
    untrained = missing(base, forget, seeds, dataset, place)
    rivals = _rivals(run, dataset, place) if options.rivals and isinstance(run, Erased) else []
    logits_path = wf.config.logits
    others = [Subject(BAKED, _baked(run, dataset))] if rivals else []
    # neither rivals nor oracles are there yet: the original takes as long as one
    stand_ins = [Subject(erasure.name, base.model) for erasure, _recipe in rivals]
    control = Subject("logit mask", LogitMask(base.model, forget, logits_path))
    bench = Bench(suspect, None, control, (*others, *stand_ins))
    stand_in = make_case(base, forget, dataset, (base.model,) * options.seeds, options, logits_path)
    due = [erasure.plan.images for erasure, made in rivals if not made.finished]
    on_estimate(estimated(base, dataset, untrained, due, expected_seconds(bench, stand_in, attacks), device))
    oracles = retrain(base, forget, seeds, dataset, place, device=options.device, progress=on_oracle)
    kept = each_trained([recipe for _erasure, recipe in rivals], dataset, device, on_rival)
    others += [Subject(erasure.name, one.network) for (erasure, _recipe), one in zip(rivals, kept, strict=True)]
    networks = [oracle.network.to(device, memory_format=LAYOUT) for oracle in oracles]
    for network in (suspect.network, wf, base.model, control.network, *(other.network for other in others)):
        network.to(device, memory_format=LAYOUT)
    case = make_case(base, forget, dataset, tuple(networks[:-1]), options, logits_path)
    bench = Bench(suspect, Subject("held-out oracle", networks[-1]), control, tuple(others))
    name = slug("-".join(dataset.class_names[c] for c in forget)) + ("-quick" if options.quick else "")
    folder = run.run.file(AUDITS) / name
    parts = Parts(place / PARTS)
    card = audit(bench, case, attacks, parts=parts, data=data_hash(dataset), on_part=on_part)
    write_card(folder, card, run, dataset, options, oracles, rivals)
    return Audited(folder, card)


def estimated(
    base: Base, dataset: Dataset, oracles: int, images: Sequence[int], attack_seconds: float, device: torch.device
) -> Estimate:
    """About how long so many oracles, and networks that see so many images each, take to train on a device."""
    an_image = seconds_an_image(base, dataset, device) if oracles or images else 0.0
    whole = an_image * base_training(base).epochs * len(dataset.train)
    return Estimate(oracles, whole, attack_seconds, len(images), an_image * sum(images))


def _rivals(run: Erased, dataset: Dataset, folder: Path) -> list[tuple[Erasure, Recipe]]:
    """The rivals of an erased network that are trained, and how."""
    base, plan = run.base, run.plan(dataset)
    return [
        (rival, recipe(rival, base, run.forget, folder))
        for rival in (fine_tuning(base, plan), from_scratch(base, plan))
    ]


def _baked(run: Erased, dataset: Dataset) -> nn.Module:
    return baked_network(run.unlearned, run.forget, dataset, run.run.settings["threshold"])


def _suspect(run: Unlearned | Erased, forget: tuple[int, ...], dataset: Dataset, threshold: float) -> Subject:
    if isinstance(run, Unlearned):
        return Subject("memmod", baked_network(run, forget, dataset, threshold), run.wf)
    if forget != run.forget:
        names = run.base.meta["class_names"]
        raise SelectionError(
            f"{run.run.path} has erased {', '.join(names[c] for c in run.forget)}, not "
            f"{', '.join(names[c] for c in forget)}: audit what was erased"
        )
    return Subject("memmod", run.network)


def make_case(
    base: Base,
    forget: tuple[int, ...],
    dataset: Dataset,
    oracles: tuple[nn.Module, ...],
    options: AuditOptions,
    logits_path: str | None = None,
) -> Case:
    """What the attacks on a run of this base get; `logits_path` as `ModulateConfig.logits`."""
    return Case(
        forget=forget,
        num_classes=dataset.num_classes,
        train=dataset.train,
        test=dataset.test,
        training=base_training(base),
        original=base.model,
        oracles=oracles,
        seed=options.seed,
        quick=options.quick,
        fresh=base.fresh,
        logits_path=logits_path,
    )


def baked_network(unlearned: Unlearned, forget: Sequence[int], dataset: Dataset, threshold: float) -> nn.Module:
    """The network that `memmod bake` would write: of the base's architecture where that holds it.

    Raises:
        SelectionError: classes that the model does not know, or all of them.
    """
    wf, selection = unlearned.wf, set(forget)
    if not selection or not all(0 <= c < wf.num_classes for c in selection) or len(selection) >= wf.num_classes:
        raise SelectionError(
            f"the classes {sorted(selection)} cannot be audited: name at least one and not all of 0 to "
            f"{wf.num_classes - 1}"
        )
    x = dataset.test.batch(torch.arange(min(len(dataset.test), 64)))
    try:
        return wf.bake(selection, threshold, "base", x)
    except ModelError:
        return wf.bake(selection, threshold).eval()


def seconds_an_image(base: Base, dataset: Dataset, device: torch.device) -> float:
    """About how long training takes for each image that is seen, from a few steps on a copy that is thrown away."""
    config = base_training(base)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        network = base.fresh(0).to(device, memory_format=LAYOUT).train()
        optimiser = torch.optim.AdamW(network.parameters())
        generator = torch.Generator().manual_seed(0)
        chosen = torch.arange(min(config.batch_size, len(dataset.train)))
        seconds = []
        for _ in range(TIMED_STEPS):
            start = time.monotonic()
            x = augment(dataset.train.batch(chosen), config, generator).to(device)
            loss = F.cross_entropy(network(x), dataset.train.labels[chosen].to(device))
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            # waits for a GPU
            loss.item()
            seconds.append(time.monotonic() - start)
    return min(seconds) / len(chosen)


def data_hash(dataset: Dataset) -> str:
    """A hash of both splits."""
    return f"{dataset.train.fingerprint()}-{dataset.test.fingerprint()}"


def write_card(
    folder: str | os.PathLike[str],
    card: AuditCard,
    run: Unlearned | Erased,
    dataset: Dataset,
    options: AuditOptions,
    oracles: Sequence[Oracle],
    rivals: Sequence[tuple[Erasure, Recipe]] = (),
) -> None:
    """Write audit.json and audit.md: every figure, with the settings, seeds and versions that it was made with.

    Folders are named without their places, so that a card can be published.

    Args:
        oracles: the one that is held out comes last.
        rivals: those of an erased network that were trained.
    """
    names = [dataset.class_names[c] for c in card.forget]
    settings: dict[str, Any] = {
        "run": run.run.path.name,
        "base": run.base.folder.name,
        "data": dataset.name,
        "forgotten": names,
        "quick": options.quick,
        "threshold": _threshold(run, options),
        "seed": options.seed,
        "oracle_folders": [oracle.folder.name for oracle in oracles[:-1]],
        "held_out_oracle": oracles[-1].folder.name,
        "unlearning" if isinstance(run, Unlearned) else "erasing": {**run.run.settings, **_places(run)},
        **({"rivals": {r.name: {"folder": made.path.name, **r.describe()} for r, made in rivals}} if rivals else {}),
        "versions": versions(),
    }
    folder = Path(folder)
    write_json(folder / CARD, {**settings, **card.to_dict()})
    lines = [
        f"# Audit: {', '.join(names)}",
        "",
        f"{run.base.meta['model']} on {dataset.name}, run `{run.run.path.name}`"
        f"{'' if isinstance(run, Unlearned) else ', erased'}, gates below {_threshold(run, options):g} zeroed, seed "
        f"{options.seed}{', quick' if options.quick else ''}.",
        "",
        *_rivals_in_words([erasure for erasure, _recipe in rivals]),
        card.markdown(),
        f"Versions: {', '.join(f'{name} {version}' for name, version in versions().items())}.",
        "",
    ]
    write_atomically(folder / TABLE, "\n".join(lines).encode())


def _rivals_in_words(rivals: Sequence[Erasure]) -> list[str]:
    """Lines of Markdown; none without rivals."""
    if not rivals:
        return []
    words = {FINE_TUNING: "the original with no layer drawn anew", FROM_SCRATCH: "all layers drawn anew"}
    trained = [
        f"{rival.name}, {words[rival.name]}, {rival.plan.steps} steps of {rival.plan.training.batch_size} images that "
        f"stay, learning rates up to {rival.plan.training.lr:g}"
        for rival in rivals
    ]
    return [f"Beside it: {BAKED}, the suppressed network that it came from; {'; '.join(trained)}.", ""]


def _places(run: Unlearned | Erased) -> dict[str, str]:
    """The folders among a run's settings, by their names."""
    places = {"base": run.base.folder.name}
    return places if isinstance(run, Unlearned) else places | {"unlearned": run.unlearned.run.path.name}


def _threshold(run: Unlearned | Erased, options: AuditOptions) -> float:
    """Of the gates in the network that was audited, or that it was erased from."""
    return options.threshold if isinstance(run, Unlearned) else run.run.settings["threshold"]
