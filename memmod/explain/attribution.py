"""Attribution along the gates' path: which units, layers and pixels hold the logit that forgetting takes away.

The gates of a selection are closed from open to their trained values, s_t = 1 - t·(1 - s), and each gated tensor's
share of the change is integrated on the way, as integrated gradients (arXiv 1703.01365) do along a path of inputs:

    A = ∫ (1 - s) ⊙ o_t ⊙ ∂f/∂(s_t ⊙ o_t) dt,    o_t the tensor before its gates at t.

Summed over everything this is f with open gates less f with the trained ones, exactly, up to the steps of the integral.
The same holds of every section of the path, so that a section whose parts miss what it takes is known and halved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memmod.errors import SelectionError
from memmod.explain.gate_path import GatedTensor, gates_at
from memmod.explain.placement import Place, onto_image, places
from memmod.explain.quadrature import gauss_legendre
from memmod.explain.targets import Target, target_of
from memmod.model import ModulatedModel
from memmod.ops.gating import distinct
from memmod.selection import Forget, to_index

# Error of the sum, relative to the drop, largest of 100 test images: trained ResNet .0036, ViT 4e-6 by Gauss-Legendre
# points; .0026 and .0009 by as many midpoints. Half as many: .006, .002; .004, .004.
STEPS = 16
# The shortest section of a path that is steeper than that.
NARROWEST = 1 / 128
TOLERANCE = 0.01
BATCH = 32


@dataclass(frozen=True)
class Attribution:
    """What forgetting takes from each sample's target, in parts. A positive part held the target up.

    Args:
        before: the target with open gates, ``[B]``.
        after: with the trained ones, ``[B]``.
        units: of every memory, by name: each unit's part, ``[B, K]``.
        cells: of every memory, by name: the parts by cells of its grid, ``[B, h·w]``.
        grids: of every memory, (h, w).
        size: the image's height and width.
        points: where on its path each sample's gradient was taken: how many places, int64 ``[B]``.
    """

    before: Tensor
    after: Tensor
    units: dict[str, Tensor]
    cells: dict[str, Tensor]
    grids: dict[str, tuple[int, int]]
    size: tuple[int, int]
    points: Tensor

    @property
    def drop(self) -> Tensor:
        """What forgetting takes from the target, measured: ``[B]``."""
        return self.before - self.after

    @property
    def total(self) -> Tensor:
        """The sum of all parts ``[B]``: `drop`, but for the error of the integral."""
        return self.by_memory().sum(1)

    @property
    def residual(self) -> Tensor:
        """The error of the integral: `total` less `drop`, ``[B]``."""
        return self.total - self.drop

    def by_memory(self) -> Tensor:
        """Each memory's part ``[B, M]``, in the order of `units`."""
        return torch.stack([units.sum(1) for units in self.units.values()], 1)

    def image(self) -> Tensor:
        """The parts by pixels ``[B, H, W]``; its sum is `total` less `unplaced`."""
        found = self.before.new_zeros(len(self.before), *self.size)
        for name, cells in self.cells.items():
            found += onto_image(cells, self.grids[name], self.size)
        return found

    @property
    def unplaced(self) -> Tensor:
        """The parts that belong to no place in the image, behind a pooling or in a class token: ``[B]``."""
        return self.total - torch.stack([cells.sum(1) for cells in self.cells.values()], 1).sum(1)


def attribute(
    wf: ModulatedModel,
    x: Tensor,
    forget: Forget,
    *,
    target: str | Target = "logit",
    classes: Tensor | Sequence[int] | int | None = None,
    strength: float = 1.0,
    steps: int = STEPS,
    tolerance: float | None = TOLERANCE,
    batch_size: int = BATCH,
) -> Attribution:
    """Take apart what a selection takes from a target.

    Costs `steps` forward and backward passes with frozen weights, more where a path is steep; keeps two copies of the
    gated tensors of `batch_size` samples at a time, and units and cells alone of the result, and of the sections of
    `batch_size` samples that are to be halved.

    Args:
        x: images ``[B, C, H, W]``.
        forget: as `ModulatedModel.forward`; nothing selected has nothing to take apart.
        target: "logit", "margin" (the logit above the highest other) or "log-probability", of `classes`; or a function
            (logits ``[B, C]``, classes ``[B]``) → ``[B]``.
        classes: int64 ``[B]``, or one for all; default: the selected class, where each sample selects one.
        strength: the gates' exponent: s^strength is the path's end.
        steps: points of the Gauss-Legendre rule, on the whole path and on each section of it.
        tolerance: a sample whose parts miss the measured drop by more than this share of it is taken apart again, by
            halves of its path and halves of those sections that miss what they take, until its parts agree or
            sections are 1/128 of the path; None: never. What is left is `residual`.
        batch_size: samples at a time.

    Returns:
        On the CPU, fp64.

    Raises:
        SelectionError: nothing selected, classes that are uncertain or out of range, an unknown target.
        ModelError: compiled layers, or weights that the network reads without calling their layer.
    """
    function, index = target_of(target), _index(wf, x, forget)
    classes = _classes(wf, x, index, classes)
    if steps < 1 or batch_size < 1 or not strength > 0:
        raise SelectionError(
            f"steps is {steps}, batch_size {batch_size} and strength {strength}; steps and batch_size must be at least "
            "1, strength above 0"
        )
    path = _Path(wf, x, index, strength, classes, function)
    found = path.nothing(len(x))
    for rows in torch.arange(len(x)).split(batch_size):
        walked = path.walk(rows, torch.zeros(len(rows)), 1.0, steps)
        found.before[rows], found.after[rows], found.points[rows] = walked.before, walked.after, walked.points
        _add(found, rows, walked, torch.ones(len(rows), dtype=torch.bool))
    if tolerance is not None:
        _refine(path, found, steps, tolerance, batch_size)
    return found


def _refine(path: _Path, found: Attribution, steps: int, tolerance: float, batch_size: int) -> None:
    """Take samples that miss their drop by more than `tolerance` of it apart again, section by section.

    Sections that miss what they take by more than their share are halved, until the sample's parts agree with its drop:
    a share is half of the tolerance by what the section takes, half by its length. So together they miss at most the
    tolerance, where the target only falls.
    """
    allowed = tolerance * found.drop.abs()
    for rows in (found.residual.abs() > allowed).nonzero().flatten().split(batch_size):
        for values in (*found.units.values(), *found.cells.values()):
            values[rows] = 0.0
        missed = torch.zeros_like(allowed)
        starts, length = torch.zeros(len(rows)), 1.0
        while len(rows):
            length /= 2
            rows, starts = rows.repeat(2), torch.cat((starts, starts + length))
            coarse: list[tuple[Tensor, Tensor, Attribution]] = []
            for own, start in zip(rows.split(batch_size), starts.split(batch_size), strict=True):
                walked = path.walk(own, start, length, steps)
                found.points.index_add_(0, own, walked.points)
                share = (tolerance * walked.drop.abs() + length * allowed[own]) / 2
                fine = (walked.residual.abs() <= share) | (length <= NARROWEST)
                missed.index_add_(0, own, walked.residual)
                _add(found, own, walked, fine)
                coarse.append((own[~fine], start[~fine], _of(walked, ~fine)))
            agrees = missed.abs() <= allowed
            for own, _, walked in coarse:
                _add(found, own, walked, agrees[own])
                missed.index_add_(0, own[~agrees[own]], -walked.residual[~agrees[own]])
            rows, starts = (torch.cat([each[i][~agrees[each[0]]] for each in coarse]) for i in (0, 1))


def _add(found: Attribution, rows: Tensor, walked: Attribution, which: Tensor) -> None:
    """Add sections of the paths of the samples `rows` to their sums: `which` of them, a mask."""
    for sums, parts in ((found.units, walked.units), (found.cells, walked.cells)):
        for name, values in parts.items():
            sums[name].index_add_(0, rows[which], values[which])


def _of(walked: Attribution, which: Tensor) -> Attribution:
    """The rows of a mask."""
    units, cells = ({name: values[which] for name, values in own.items()} for own in (walked.units, walked.cells))
    return replace(
        walked,
        before=walked.before[which],
        after=walked.after[which],
        units=units,
        cells=cells,
        points=walked.points[which],
    )


class _Path:
    """The way of each sample's gates from open to trained, walked in sections."""

    def __init__(
        self, wf: ModulatedModel, x: Tensor, index: Tensor, strength: float, classes: Tensor, target: Target
    ) -> None:
        self.wf, self.x, self.index, self.strength = wf, x, index, strength
        self.classes, self.target = classes, target
        self.gates, self.where = wf.gates(), places(wf, x.shape[1:])

    def nothing(self, samples: int) -> Attribution:
        """Parts of nought, on the CPU."""
        units = {name: torch.zeros(samples, gate.shape[1], dtype=torch.float64) for name, gate in self.gates.items()}
        cells = {
            name: torch.zeros(samples, math.prod(found[0].grid), dtype=torch.float64)
            for name, found in self.where.items()
        }
        grids = {name: found[0].grid for name, found in self.where.items()}
        ends = torch.zeros(2, samples, dtype=torch.float64)
        points = torch.zeros(samples, dtype=torch.int64)
        return Attribution(ends[0], ends[1], units, cells, grids, tuple(self.x.shape[-2:]), points)

    def walk(self, rows: Tensor, starts: Tensor, length: float, steps: int) -> Attribution:
        """What one section of each path takes: of the samples `rows` ``[R]``, from `starts` ``[R]`` in [0, 1) on.

        `before` and `after` are the target at the section's ends.
        """
        wf, x, classes = self.wf, self.x[rows.to(self.x.device)], self.classes[rows.to(self.x.device)]
        trained = _trained(
            self.gates, self.index if len(self.index) == 1 else self.index[rows], len(rows), self.strength
        )
        starts = starts.to(x.device).unsqueeze(1)
        found = self.nothing(len(rows))
        units = {name: values.to(x.device) for name, values in found.units.items()}
        cells = {name: values.to(x.device) for name, values in found.cells.items()}

        def gates(place: float) -> dict[str, Tensor]:
            return {name: 1 - (starts + place * length) * (1 - gate) for name, gate in trained.items()}

        for place, weight in gauss_legendre(steps):
            tensors: list[GatedTensor] = []
            with torch.enable_grad():
                with gates_at(wf, gates(place), tensors.append):
                    logits = wf.logits(wf(x, forget=-1))
                value = self.target(logits, classes).sum()
                gradients = torch.autograd.grad(value, [tensor.gated for tensor in tensors], allow_unused=True)
            calls = dict.fromkeys(trained, 0)
            for tensor, gradient in zip(tensors, gradients, strict=True):
                where = self.where[tensor.memory][calls[tensor.memory]]
                calls[tensor.memory] += 1
                if gradient is not None:
                    _take(tensor, gradient, 1 - trained[tensor.memory], where, units, cells, weight * length)
        ends = []
        with torch.no_grad():
            for place in (0.0, 1.0):
                with gates_at(wf, gates(place)):
                    ends.append(self.target(wf.logits(wf(x, forget=-1)), classes).double().cpu())
        return replace(
            found,
            before=ends[0],
            after=ends[1],
            units={name: values.cpu() for name, values in units.items()},
            cells={name: values.cpu() for name, values in cells.items()},
            points=torch.full((len(rows),), steps),
        )


def _take(
    tensor: GatedTensor,
    gradient: Tensor,
    closed: Tensor,
    place: Place,
    units: dict[str, Tensor],
    cells: dict[str, Tensor],
    weight: float,
) -> None:
    """Add one tensor's share at one point, whose weight in the integral is given; closed ``[B, K]`` is 1 - s."""
    samples = len(closed)
    # [B, k, …, K] as [B, P, K]
    product = (tensor.open * gradient).movedim(tensor.dim, -1).reshape(samples, -1, closed.shape[1]).float()
    units[tensor.memory] += weight * (product.sum(1, dtype=torch.float64) * closed)
    cell = place.cells.to(product.device)
    if bool((cell >= 0).any()):
        by_position = torch.bmm(product, closed.float().unsqueeze(2)).squeeze(2).double() * weight
        placed = (cell >= 0).nonzero().flatten()
        cells[tensor.memory].index_add_(1, cell[placed], by_position[:, placed])


def _trained(gates: dict[str, Tensor], index: Tensor, samples: int, strength: float) -> dict[str, Tensor]:
    """Each sample's gates ``[B, K]`` of a selection, by memory."""
    table = index.unsqueeze(1) if index.dim() == 1 else distinct(index)
    found = {}
    for name, own in gates.items():
        rows = torch.cat((own, own.new_ones(1, own.shape[1])))[table.remainder(len(own) + 1)]
        found[name] = (rows.prod(1) ** strength).expand(samples, -1)
    return found


def _index(wf: ModulatedModel, x: Tensor, forget: Forget) -> Tensor:
    index = to_index(forget, wf.num_classes, wf.class_names, wf.device)
    if index is None or not bool((index >= 0).any()):
        raise SelectionError("nothing is selected, so forgetting takes nothing away: name the classes (forget)")
    if bool((index >= wf.num_classes).any()) or bool((index < -1).any()):
        raise SelectionError(f"the selection has class numbers outside of 0 to {wf.num_classes - 1}")
    if len(index) not in (1, len(x)):
        raise SelectionError(f"the selection is for {len(index)} samples, but x has {len(x)}")
    return index


def _classes(wf: ModulatedModel, x: Tensor, index: Tensor, classes: Tensor | Sequence[int] | int | None) -> Tensor:
    if classes is None:
        single = index if index.dim() == 1 else index[:, 0]
        if (index.dim() == 2 and index.shape[1] > 1) or bool((single < 0).any()):
            raise SelectionError(
                "samples select several classes or none, so whose logit is meant is uncertain: pass classes"
            )
        classes = single
    found = torch.as_tensor(classes, dtype=torch.int64, device=x.device).reshape(-1).expand(len(x))
    if bool((found < 0).any()) or bool((found >= wf.num_classes).any()):
        raise SelectionError(f"classes has numbers outside of 0 to {wf.num_classes - 1}")
    return found
