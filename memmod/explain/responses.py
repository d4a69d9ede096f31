"""What a unit responds to: the images that excite it most, and those whose logit it decides most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memmod.data import Split
from memmod.errors import SelectionError
from memmod.explain.gate_path import GatedTensor, gates_at
from memmod.explain.receptive import Boxes
from memmod.explain.targets import logit
from memmod.model import ModulatedModel

TOP = 9
BATCH = 64

# A memory's name, as in `ModulatedModel.gates`, and the number of one of its units.
Unit = tuple[str, int]


@dataclass(frozen=True)
class Exciting:
    """The images that excite a unit most, highest first.

    Args:
        images: their numbers in the split.
        values: the unit's output before its gate, the highest of its positions.
        boxes: (x0, y0, x1, y1) around that position, in pixels, the end not included (`memmod.explain.receptive`); None
            where it is no place in the image.
    """

    images: tuple[int, ...]
    values: tuple[float, ...]
    boxes: tuple[tuple[int, int, int, int] | None, ...]


@dataclass(frozen=True)
class Deciding:
    """The images whose logit changes most where a unit alone is closed, the largest change first.

    Args:
        images: their numbers in the split.
        drops: what the logit loses, below 0 where it gains.
    """

    images: tuple[int, ...]
    drops: tuple[float, ...]


class _Top:
    """The `count` highest of numbers that come by and by ``[U, n]``, and what stands beside them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.held: tuple[Tensor, ...] = ()

    def add(self, keys: Tensor, *beside: Tensor) -> None:
        """Keys ``[U, n]``, and tensors of that shape."""
        new = (keys, *beside)
        joined = [torch.cat(pair, 1) for pair in zip(self.held, new, strict=True)] if self.held else list(new)
        order = joined[0].argsort(dim=1, descending=True, stable=True)[:, : self.count]
        self.held = tuple(values.gather(1, order) for values in joined)


@torch.no_grad()
def exciting(
    wf: ModulatedModel, split: Split, units: Sequence[Unit], top: int = TOP, batch_size: int = BATCH
) -> list[Exciting]:
    """The `top` images of a split that excite each unit most, from one pass with nothing selected.

    Of a layer that the network calls several times, the first call counts.

    Raises:
        SelectionError: an unknown unit, a number below 1.
        ModelError: layers that cannot be watched.
    """
    _check(wf, units, top, batch_size)
    boxes = Boxes(wf, [memory for memory, _ in units])
    held = _Top(top)
    for rows in torch.arange(len(split)).split(batch_size):
        x = split.batch(rows).to(wf.device)
        found = _highest(wf, x, units, boxes)
        held.add(found[0], found[1], rows.expand(len(units), -1))
    values, cells, images = (tensor.tolist() for tensor in held.held)
    return [
        Exciting(tuple(images[u]), tuple(values[u]), tuple(boxes.of(memory, cell) for cell in cells[u]))
        for u, (memory, _) in enumerate(units)
    ]


def _highest(wf: ModulatedModel, x: Tensor, units: Sequence[Unit], boxes: Boxes) -> tuple[Tensor, Tensor]:
    """Each unit's highest output ``[U, B]``, and the cell it is in, -1 for none."""
    values = torch.full((len(units), len(x)), -torch.inf)
    cells = torch.full((len(units), len(x)), -1)
    left = {memory for memory, _ in units}

    def see(tensor: GatedTensor) -> None:
        if tensor.memory not in left:
            return
        left.remove(tensor.memory)
        own = [u for u, (memory, _) in enumerate(units) if memory == tensor.memory]
        by_position = tensor.open.movedim(tensor.dim, -1).reshape(len(x), -1, tensor.open.shape[tensor.dim])
        numbers = torch.tensor([units[u][1] for u in own], device=by_position.device)
        highest, position = by_position[:, :, numbers].max(1)
        values[own] = highest.t().float().cpu()
        cells[own] = boxes.places[tensor.memory].cells[position.t().cpu()]

    ones = {name: gate.new_ones(len(x), gate.shape[1]) for name, gate in wf.gates().items()}
    with gates_at(wf, ones, see):
        wf(x, forget=-1)
    return values, cells


@torch.no_grad()
def deciding(
    wf: ModulatedModel,
    split: Split,
    units: Sequence[Unit],
    of: int | None = None,
    top: int = TOP,
    batch_size: int = BATCH,
) -> list[Deciding]:
    """The `top` images of a split whose logit changes most where each unit alone is closed.

    Costs as many forward passes of the split as there are units, and one more.

    Args:
        of: the class whose logit is meant; None: each image's own.
        batch_size: rows at a time: of images, or of one image with several units closed.

    Raises:
        SelectionError: an unknown unit or class, a number below 1.
        ModelError: layers that cannot be watched.
    """
    _check(wf, units, top, batch_size)
    if of is not None and not 0 <= of < wf.num_classes:
        raise SelectionError(f"of is class {of}, outside of 0 to {wf.num_classes - 1}")
    held = _Top(top)
    together = min(len(units), batch_size)
    for rows in torch.arange(len(split)).split(max(batch_size // together, 1)):
        x = split.batch(rows).to(wf.device)
        classes = (split.labels[rows] if of is None else torch.full_like(rows, of)).to(wf.device)
        before = logit(wf.logits(wf(x, forget=-1)), classes)
        after = [_closed(wf, x, classes, units[u : u + together]) for u in range(0, len(units), together)]
        drops = (before - torch.cat(after)).float().cpu()
        held.add(drops.abs(), drops, rows.expand(len(units), -1))
    _, drops, images = (tensor.tolist() for tensor in held.held)
    return [Deciding(tuple(images[u]), tuple(drops[u])) for u in range(len(units))]


def _closed(wf: ModulatedModel, x: Tensor, classes: Tensor, units: Sequence[Unit]) -> Tensor:
    """The logits ``[u, B]`` where each of the units alone is closed: the images once for each, one after another."""
    gates = {name: gate.new_ones(len(units), len(x), gate.shape[1]) for name, gate in wf.gates().items()}
    for u, (memory, unit) in enumerate(units):
        gates[memory][u, :, unit] = 0.0
    with gates_at(wf, {name: gate.flatten(0, 1) for name, gate in gates.items()}):
        logits = wf.logits(wf(x.repeat(len(units), *[1] * (x.dim() - 1)), forget=-1))
    return logit(logits, classes.repeat(len(units))).view(len(units), len(x))


def _check(wf: ModulatedModel, units: Sequence[Unit], top: int, batch_size: int) -> None:
    if top < 1 or batch_size < 1 or not units:
        raise SelectionError(
            f"top is {top}, batch_size {batch_size}, and there are {len(units)} units; each must be at least 1"
        )
    gates = wf.gates()
    for memory, unit in units:
        if memory not in gates:
            raise SelectionError(f"there is no memory {memory!r}; this model has {_some(list(gates))}")
        if not 0 <= unit < gates[memory].shape[1]:
            raise SelectionError(f"{memory} has units 0 to {gates[memory].shape[1] - 1}, but unit {unit} is meant")


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
