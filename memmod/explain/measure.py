"""Maps of a network measured beside each other: insertion, deletion, and the checks of what they depend on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from memmod.data import Split, at_most
from memmod.evaluation.attacks.bootstrap import bootstrap
from memmod.explain import sanity
from memmod.explain.attribution import attribute
from memmod.explain.faithfulness import FaithfulnessConfig, curves
from memmod.explain.rivals import Map
from memmod.explain.similarity import spearman, ssim
from memmod.model import ModulatedModel

DRAWS = 1000


@dataclass(frozen=True)
class Mean:
    """A mean over images, and its 95 % interval over resampled images."""

    value: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, values: Tensor) -> Mean:
        """Of one value for each image ``[B]``."""
        values = values.double().cpu()
        return cls(values.mean().item(), bootstrap(lambda drawn: drawn.mean().item(), values, draws=DRAWS))


@dataclass(frozen=True)
class Row:
    """One map's figures.

    Args:
        map: its name.
        insertion: area under the class's probability as pixels are inserted: better high.
        deletion: as they are deleted: better low.
        other_class: the rank correlation with the map for another class of the same image: better low.
    """

    map: str
    insertion: Mean
    deletion: Mean
    other_class: Mean


@dataclass(frozen=True)
class Checks:
    """What the map of the gates' path depends on: similarities to the maps with something else in its place.

    Args:
        memories_rank: rank correlation with the map of permuted memories.
        memories_ssim: structural similarity to it.
        row_rank: rank correlation with the map that another class's row makes of the same logit.
        sum_median: the miss of the parts' sum as a share of what forgetting takes from the logit, half of the images.
        sum_worst: the largest.
    """

    memories_rank: Mean
    memories_ssim: Mean
    row_rank: Mean
    sum_median: float
    sum_worst: float


@dataclass(frozen=True)
class Faithfulness:
    """The maps' rows, in the order that the maps were given in, and the checks."""

    steps: int
    images: int
    rows: tuple[Row, ...]
    checks: Checks

    def to_dict(self) -> dict[str, Any]:
        """``{"steps", "images", "rows": [{"map", "insertion", "insertion_interval": [low, high], ...}], "checks"}``."""
        return {
            "steps": self.steps,
            "images": self.images,
            "rows": [_flat(row) for row in self.rows],
            "checks": _flat(self.checks),
        }


def measure_faithfulness(
    wf: ModulatedModel,
    split: Split,
    maps: Mapping[str, Map],
    config: FaithfulnessConfig | None = None,
    *,
    on_map: Callable[[str], None] = lambda _name: None,
) -> Faithfulness:
    """Measure maps of the logit of each image's own class, in the network with nothing selected.

    Args:
        split: `config.images` of it are taken, of each class its share, and of these `config.checked` for the checks.
        maps: by name, as `memmod.explain.rivals.MAPS`.
        on_map: called with the name of each map when it has been measured.

    Raises:
        MemmodError: a map that cannot be made, or one class alone, so that no map is of another.
    """
    config = config or FaithfulnessConfig()
    chosen = at_most(split.labels, config.images, config.seed)
    x, classes = split.batch(chosen).to(wf.device), split.labels[chosen].to(wf.device)
    checked = at_most(split.labels[chosen], config.checked, config.seed).to(wf.device)
    others = sanity.other_classes(classes[checked], wf.num_classes, config.seed)
    rows = []
    for name, make in maps.items():
        own = make(wf, x, classes)
        insertion, deletion = curves(wf, x, classes, own, split.black, config).areas()
        other = spearman(own[checked], make(wf, x[checked], others))
        rows.append(Row(name, *(Mean.of(values) for values in (insertion, deletion, other))))
        on_map(name)
    checks = _checks(wf, x[checked], classes[checked], config.seed)
    return Faithfulness(config.steps, len(x), tuple(rows), checks)


def _checks(wf: ModulatedModel, x: Tensor, classes: Tensor, seed: int) -> Checks:
    found = attribute(wf, x, classes)
    own, errors = found.image(), sanity.sum_errors(found)
    permuted = sanity.with_permuted_memories(wf, x, classes, seed)
    return Checks(
        Mean.of(spearman(own, permuted)),
        Mean.of(ssim(own, permuted)),
        Mean.of(spearman(own, sanity.with_another_row(wf, x, classes, seed))),
        errors.median().item(),
        errors.max().item(),
    )


def _flat(figures: Row | Checks) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in asdict(figures).items():
        if isinstance(value, dict):
            found |= {name: value["value"], f"{name}_interval": list(value["interval"])}
        else:
            found[name] = value
    return found
