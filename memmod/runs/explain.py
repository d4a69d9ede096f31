"""What `memmod explain` does: the class atlas, and what forgetting takes from each class and from sample images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memmod.data import Dataset
from memmod.data.splits import at_most
from memmod.errors import RunError, SelectionError
from memmod.evaluation.features import feature_points
from memmod.explain.atlas import MOST_PAIRS, Atlas, atlas
from memmod.explain.attribution import STEPS, TOLERANCE, Attribution, attribute
from memmod.explain.captum_maps import check_captum
from memmod.explain.confusions import agreement
from memmod.explain.faithfulness import FaithfulnessConfig
from memmod.explain.flows import Flows, flows, predictions_of
from memmod.explain.measure import measure_faithfulness
from memmod.explain.pictures import overlay, picture
from memmod.explain.recount import recount_class, recount_image
from memmod.explain.responses import deciding, exciting
from memmod.explain.rivals import MAPS
from memmod.explain.taken import stages_of, taken
from memmod.model import ModulatedModel
from memmod.ops.gating import CLOSED
from memmod.runs.folder import EXPLANATION, versions, write_json
from memmod.runs.oracles import finished
from memmod.runs.restore import Unlearned

VERSION = 1
# Of more classes than this so many are drawn, unless they are named.
MOST_CLASSES, DRAWN_CLASSES = 50, 20
UNITS = 5
# Images of each kind that a unit responds to.
SHOWN = 6
# Images that a second map of is made to check what maps depend on.
CHECKED = 100


@dataclass(frozen=True)
class ExplainOptions:
    """What to explain, and of how many images.

    Args:
        classes: whose images are taken apart; None: all, of more than 50 classes 20 drawn ones.
        sets: classes that are also forgotten together.
        mean_of: test images of each class whose attributions are summed.
        images: of them, those shown with their maps.
        units: of each class's most specific units, those whose responses are shown.
        looked_at: test images among which those that excite a unit are looked for.
        threshold: gates below it count as closed.
        steps: points of each attribution's integral.
        faithfulness: test images that the faithfulness of maps is measured on; 0: not measured.
        seed: of the images and classes that are drawn.
    """

    classes: tuple[int, ...] | None = None
    sets: tuple[tuple[int, ...], ...] = ()
    mean_of: int = 100
    images: int = 4
    units: int = 1
    looked_at: int = 500
    threshold: float = CLOSED
    steps: int = STEPS
    faithfulness: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mean_of < 1 or not 0 <= self.images <= self.mean_of:
            raise RunError(
                f"mean_of is {self.mean_of} and images {self.images}; at least 1 image of each class is taken apart, "
                "and no more can be shown"
            )
        if self.units < 0 or self.looked_at < 1:
            raise RunError(f"units is {self.units} and looked_at {self.looked_at}; they must be at least 0 and 1")
        if self.faithfulness < 0:
            raise RunError(f"faithfulness is {self.faithfulness} images; it must be at least 1, or 0 for none")
        for each in self.sets:
            if len(set(each)) < 2:
                raise SelectionError(
                    f"the set {sorted(set(each))} has fewer than 2 classes: single classes are explained anyway"
                )


@dataclass(frozen=True)
class Explained:
    """An explanation as JSON values, and where it was written."""

    path: str
    explanation: dict[str, Any]


@dataclass(frozen=True)
class ExplainStep:
    """Progress: images done of all, and what is being done."""

    done: int
    of: int
    what: str


def explain_run(
    unlearned: Unlearned,
    dataset: Dataset,
    options: ExplainOptions | None = None,
    *,
    on_step: Callable[[ExplainStep], None] = lambda _step: None,
) -> Explained:
    """Explain a run of unlearning, and write explanation.json into its folder.

    Retrained networks' predictions are shown where an audit has trained such networks; none is trained here. The
    faithfulness of maps is measured last, when all else has been written.

    Raises:
        SelectionError: classes or sets that the model does not know, or faithfulness asked for of one class alone.
        RunError: faithfulness asked for without captum.
        ModelError: a network whose gates cannot be followed, or of which a map cannot be made.
    """
    options = options or ExplainOptions()
    wf, names = unlearned.wf, dataset.class_names
    _check_classes(options, len(names))
    if options.faithfulness:
        check_captum()
    classes = _chosen(options, len(names))
    rows = {c: _images_of(dataset.test.labels, c, options) for c in classes}
    of = len(dataset.test) + sum(map(len, rows.values())) + options.faithfulness * len(MAPS)
    done = 0

    def told(what: str, images: int) -> None:
        nonlocal done
        done += images
        on_step(ExplainStep(done, of, what))

    gates = {name: gate.cpu().numpy() for name, gate in wf.gates().items()}
    drawn = atlas(gates, options.threshold)
    where = flows(wf, dataset.test, options.sets, on_image=lambda images: told("predictions", images))
    blocks = feature_points(unlearned.base.model, dataset.test.batch(torch.arange(min(2, len(dataset.test)))))
    stages = stages_of(list(gates), blocks)
    found: list[dict[str, Any] | None] = [None] * len(names)
    images: list[dict[str, Any]] = []
    for c in classes:
        if not len(rows[c]):
            continue
        parts = attribute(wf, dataset.test.batch(rows[c]).to(wf.device), c, steps=options.steps)
        found[c] = taken(parts, torch.arange(len(rows[c])), stages, UNITS).to_dict()
        images += _samples(wf, dataset, parts, rows[c], c, stages, options)
        told(f"images of {names[c]}", len(rows[c]))
    explanation: dict[str, Any] = {
        "explanation": VERSION,
        "data": dataset.name,
        "class_names": list(names),
        "input_shape": list(dataset.input_shape),
        "settings": {
            **asdict(options),
            "classes": list(classes),
            "tolerance": TOLERANCE,
            "run": unlearned.run.path.name,
        },
        "versions": versions(),
        "atlas": _atlas(drawn, gates, where, dataset),
        "flows": _flows(where, unlearned, dataset) if len(names) <= MOST_PAIRS else None,
        "taken": found,
        "images": images,
        "responses": _responses(wf, dataset, drawn, classes, options),
    }
    explanation["recount"] = {
        "classes": [
            {"class": c, "sentences": [sentence.to_dict() for sentence in recount_class(explanation, c)]}
            for c in range(len(names))
        ],
        "images": [
            {
                "image": own["image"],
                "sentences": [sentence.to_dict() for sentence in recount_image(explanation, number)],
            }
            for number, own in enumerate(images)
        ],
    }
    path = unlearned.run.file(EXPLANATION)
    write_json(path, explanation)
    if options.faithfulness:
        config = FaithfulnessConfig(
            images=options.faithfulness, checked=min(CHECKED, options.faithfulness), seed=options.seed
        )
        measured = measure_faithfulness(
            wf, dataset.test, MAPS, config, on_map=lambda name: told(f"faithfulness of {name}", options.faithfulness)
        )
        explanation["faithfulness"] = measured.to_dict()
        write_json(path, explanation)
    return Explained(str(path), explanation)


def _check_classes(options: ExplainOptions, classes: int) -> None:
    if options.faithfulness and classes < 2:
        raise SelectionError(
            "faithfulness compares each image's map with that of another class, and the model knows one class alone"
        )
    named = [*(options.classes or ()), *(c for each in options.sets for c in each)]
    unknown = sorted({c for c in named if not 0 <= c < classes})
    if unknown:
        raise SelectionError(f"class {unknown[0]} is out of range: the model knows the classes 0 to {classes - 1}")


def _chosen(options: ExplainOptions, classes: int) -> tuple[int, ...]:
    if options.classes is not None:
        return tuple(dict.fromkeys(options.classes))
    if classes <= MOST_CLASSES:
        return tuple(range(classes))
    generator = torch.Generator().manual_seed(options.seed)
    return tuple(torch.randperm(classes, generator=generator)[:DRAWN_CLASSES].sort().values.tolist())


def _images_of(labels: Tensor, c: int, options: ExplainOptions) -> Tensor:
    own = (labels == c).nonzero().flatten()
    generator = torch.Generator().manual_seed(options.seed)
    return own[torch.randperm(len(own), generator=generator)[: options.mean_of]]


def _samples(
    wf: ModulatedModel,
    dataset: Dataset,
    parts: Attribution,
    rows: Tensor,
    c: int,
    stages: dict[str, str],
    options: ExplainOptions,
) -> list[dict[str, Any]]:
    """The first images of a class, with their maps and shares."""
    shown = rows[: options.images]
    if not len(shown):
        return []
    x, pixels = dataset.test.batch(shown).to(wf.device), dataset.test.pixels(shown)
    with torch.no_grad():
        before, after = (wf.logits(wf(x, forget=forget)).argmax(1).tolist() for forget in (-1, c))
    maps = parts.image()
    samples = []
    for number, image in enumerate(shown.tolist()):
        own = taken(parts, torch.tensor([number]), stages, UNITS)
        samples.append(
            {
                "image": image,
                "label": c,
                "forgotten": [c],
                "before": before[number],
                "after": after[number],
                "picture": picture(pixels[number]),
                "map": overlay(maps[number]),
                "logit_before": float(parts.before[number]),
                "logit_after": float(parts.after[number]),
                "drop": own.drop,
                "unplaced": own.unplaced,
                "stages": [asdict(stage) for stage in own.stages],
                "layers": [asdict(layer) for layer in own.layers],
                "units": [asdict(unit) for unit in own.units],
            }
        )
    return samples


def _responses(
    wf: ModulatedModel, dataset: Dataset, drawn: Atlas, classes: Sequence[int], options: ExplainOptions
) -> list[dict[str, Any]]:
    """What the most specific units of each class respond to, among some test images of all classes."""
    owners = [(c, unit) for c in classes for unit in drawn.specific[c][: options.units]]
    if not owners:
        return []
    looked_at = at_most(dataset.test.labels, options.looked_at, options.seed)
    split = dataset.test.subset(looked_at)
    units = [(unit.layer, unit.unit) for _, unit in owners]
    excited = exciting(wf, split, units, SHOWN)
    decided = [deciding(wf, split, [unit], c, SHOWN)[0] for (c, _), unit in zip(owners, units, strict=True)]

    def shown(image: int) -> dict[str, Any]:
        number = looked_at[image : image + 1]
        return {"image": int(number), "picture": picture(dataset.test.pixels(number)[0])}

    return [
        {
            "layer": unit.layer,
            "unit": unit.unit,
            "class": c,
            "exciting": [
                shown(image) | {"box": None if box is None else list(box), "value": value}
                for image, value, box in zip(most.images, most.values, most.boxes, strict=True)
            ],
            "closing": [
                shown(image) | {"change": -drop} for image, drop in zip(least.images, least.drops, strict=True)
            ],
        }
        for (c, unit), most, least in zip(owners, excited, decided, strict=True)
    ]


def _atlas(drawn: Atlas, gates: dict[str, np.ndarray], where: Flows, dataset: Dataset) -> dict[str, Any]:
    classes = dataset.num_classes
    enough = classes >= 4 and len(dataset.test.labels.unique()) == classes
    table = (where.probabilities + where.probabilities.T) / 2
    return drawn.to_dict() | {
        "confusions": agreement(gates, table).to_dict() if enough and classes <= MOST_PAIRS else None
    }


def _flows(where: Flows, unlearned: Unlearned, dataset: Dataset) -> dict[str, Any]:
    retrained: dict[str, list[float]] = {}
    for c in range(dataset.num_classes):
        own = (dataset.test.labels == c).nonzero().flatten()
        try:
            oracles = finished(unlearned.base, (c,), dataset) if len(own) else []
        except (RunError, SelectionError):
            # A base that cannot be retrained, or of two classes, has none.
            break
        if oracles:
            split = dataset.test.subset(own)
            networks = [oracle.network for oracle in oracles]
            retrained[str(c)] = predictions_of(networks, split, dataset.num_classes).round(4).tolist()
    return where.to_dict() | {"retrained": retrained or None}
