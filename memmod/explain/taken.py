"""What forgetting takes from each class's images, and with which stages, layers and units: means of attributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from memmod.explain.attribution import Attribution

UNITS = 5


@dataclass(frozen=True)
class Share:
    """A part of what is taken: of a stage, or of a memory's layer."""

    name: str
    share: float


@dataclass(frozen=True)
class UnitShare:
    """The part of one unit; `stage` is what its layer belongs to."""

    layer: str
    unit: int
    stage: str
    share: float


@dataclass(frozen=True)
class Taken:
    """What forgetting takes from a target, over some images.

    Args:
        images: how many.
        before: the target's mean with nothing forgotten.
        drop: the mean that is taken.
        residual: the most by which an image's parts miss its drop, as a share of the mean size of the drops.
        unplaced: the share that belongs to no place in the image.
        stages, layers: shares of the drop, in the network's order; they sum to 1.
        units: the largest shares, from the largest on.
    """

    images: int
    before: float
    drop: float
    residual: float
    unplaced: float
    stages: tuple[Share, ...]
    layers: tuple[Share, ...]
    units: tuple[UnitShare, ...]

    @property
    def stage(self) -> Share:
        """The stage with the largest share."""
        return max(self.stages, key=lambda stage: stage.share)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def taken(found: Attribution, rows: Tensor, stages: Mapping[str, str], units: int = UNITS) -> Taken:
    """Sum the attribution of the samples `rows` ``[n]``, n ≥ 1.

    Args:
        stages: the stage of each memory, by name.
        units: how many are listed.
    """
    # Where all gates are open nothing is taken, and every share of it is 0.
    total = found.total[rows].sum() or 1.0
    by_unit = {name: values[rows].sum(0) / total for name, values in found.units.items()}
    layers = [Share(name, float(values.sum())) for name, values in by_unit.items()]
    names = list(dict.fromkeys(stages[name] for name in by_unit))
    of_stages = [Share(stage, sum(layer.share for layer in layers if stages[layer.name] == stage)) for stage in names]
    flat = [(name, unit) for name, values in by_unit.items() for unit in range(len(values))]
    values = torch.cat(list(by_unit.values()))
    best = values.topk(min(units, len(values))).indices.tolist()
    drop = found.drop[rows]
    return Taken(
        len(rows),
        float(found.before[rows].mean()),
        float(drop.mean()),
        float(found.residual[rows].abs().max() / (drop.abs().mean() or 1.0)),
        float(found.unplaced[rows].sum() / total),
        tuple(of_stages),
        tuple(layers),
        tuple(UnitShare(flat[u][0], flat[u][1], stages[flat[u][0]], float(values[u])) for u in best),
    )


def stages_of(memories: Sequence[str], blocks: Sequence[str]) -> dict[str, str]:
    """The block that each memory lies in, by the names of a network's blocks; its own layer where it is in none."""
    found = {}
    for name in memories:
        layer = name.rpartition(".")[0]
        inside = [block for block in blocks if layer == block or layer.startswith(f"{block}.")]
        found[name] = max(inside, key=len) if inside else layer
    return found
