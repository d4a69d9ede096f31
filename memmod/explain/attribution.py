"""Attribution along the gates' path: which units, layers and pixels hold the logit that forgetting takes away.

The gates of a selection are closed from open to their trained values, s_t = 1 - t·(1 - s), and each gated tensor's
share of the change is integrated on the way, as integrated gradients (arXiv 1703.01365) do along a path of inputs:

    A = ∫ (1 - s) ⊙ o_t ⊙ ∂f/∂(s_t ⊙ o_t) dt,    o_t the tensor before its gates at t.

Summed over everything this is f with open gates less f with the trained ones, exactly, up to the steps of the integral.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from memmod.errors import SelectionError
from memmod.explain.gate_path import GatedTensor, gates_at
from memmod.explain.placement import Place, onto_image, places
from memmod.explain.targets import Target, target_of
from memmod.model import ModulatedModel
from memmod.ops.gating import distinct
from memmod.selection import Forget, to_index

# Error of the sum, relative to the drop, largest of 100 test images: trained ResNet .0036, ViT 4e-6 by Gauss-Legendre
# points; .0026 and .0009 by as many midpoints. Half as many: .006, .002; .004, .004.
STEPS = 16
# A path that is steeper than that is walked again in twice the steps, up to so many.
MOST_STEPS = 256
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
    """

    before: Tensor
    after: Tensor
    units: dict[str, Tensor]
    cells: dict[str, Tensor]
    grids: dict[str, tuple[int, int]]
    size: tuple[int, int]

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

    Costs `steps` forward and backward passes with frozen weights; keeps two copies of the gated tensors of `batch_size`
    samples at a time, and of the result units and cells alone.

    Args:
        x: images ``[B, C, H, W]``.
        forget: as `ModulatedModel.forward`; nothing selected has nothing to take apart.
        target: "logit", "margin" (the logit above the highest other) or "log-probability", of `classes`; or a function
            (logits ``[B, C]``, classes ``[B]``) → ``[B]``.
        classes: int64 ``[B]``, or one for all; default: the selected class, where each sample selects one.
        strength: the gates' exponent: s^strength is the path's end.
        steps: points of the Gauss-Legendre rule.
        tolerance: samples whose parts miss the measured drop by more than this share of it are taken apart again in
            twice the steps, up to 256; None: never. What is left is `residual`.
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
    where, gates = places(wf, x.shape[1:]), wf.gates()

    def walked(rows: Tensor, steps: int) -> Attribution:
        parts = []
        for batch in rows.split(batch_size):
            trained = _trained(gates, index if len(index) == 1 else index[batch], len(batch), strength)
            parts.append(_along_path(wf, x[batch], trained, classes[batch], function, steps, where))
        return _joined(parts, where, tuple(x.shape[-2:]))

    found = walked(torch.arange(len(x), device=x.device), steps)
    while tolerance is not None and 2 * steps <= MOST_STEPS:
        steps *= 2
        missed = (found.residual.abs() > tolerance * found.drop.abs()).nonzero().flatten()
        if not len(missed):
            break
        _replace(found, missed, walked(missed.to(x.device), steps))
    return found


def _along_path(
    wf: ModulatedModel,
    x: Tensor,
    trained: dict[str, Tensor],
    classes: Tensor,
    target: Target,
    steps: int,
    where: dict[str, tuple[Place, ...]],
) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """(before, after, units, cells) of one batch; `trained` are the gates at the path's end."""
    units = {name: gate.new_zeros(gate.shape, dtype=torch.float64) for name, gate in trained.items()}
    cells = {name: x.new_zeros(len(x), math.prod(found[0].grid), dtype=torch.float64) for name, found in where.items()}
    points, weights = np.polynomial.legendre.leggauss(steps)
    for t, weight in zip((points + 1) / 2, weights / 2, strict=True):
        tensors: list[GatedTensor] = []
        with torch.enable_grad():
            with gates_at(wf, {name: 1 - float(t) * (1 - gate) for name, gate in trained.items()}, tensors.append):
                logits = wf.logits(wf(x, forget=-1))
            value = target(logits, classes).sum()
            gradients = torch.autograd.grad(value, [tensor.gated for tensor in tensors], allow_unused=True)
        calls = dict.fromkeys(trained, 0)
        for tensor, gradient in zip(tensors, gradients, strict=True):
            place = where[tensor.memory][calls[tensor.memory]]
            calls[tensor.memory] += 1
            if gradient is not None:
                _add(tensor, gradient, 1 - trained[tensor.memory], place, units, cells, float(weight))
    with torch.no_grad():
        ends = []
        for gates in ({name: torch.ones_like(gate) for name, gate in trained.items()}, trained):
            with gates_at(wf, gates):
                ends.append(target(wf.logits(wf(x, forget=-1)), classes).double())
    return ends[0], ends[1], units, cells


def _add(
    tensor: GatedTensor,
    gradient: Tensor,
    closed: Tensor,
    place: Place,
    units: dict[str, Tensor],
    cells: dict[str, Tensor],
    weight: float,
) -> None:
    """Add one tensor's share of one step, whose weight in the integral is given; closed ``[B, K]`` is 1 - s."""
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


def _replace(found: Attribution, rows: Tensor, better: Attribution) -> None:
    """Put the better attribution of some samples in the place of theirs."""
    for own, new in ((found.units, better.units), (found.cells, better.cells)):
        for name, values in own.items():
            values[rows] = new[name]


def _joined(
    parts: list[tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]],
    where: dict[str, tuple[Place, ...]],
    size: tuple[int, int],
) -> Attribution:
    before, after = (torch.cat([part[i] for part in parts]).cpu() for i in (0, 1))
    units, cells = ({name: torch.cat([part[i][name] for part in parts]).cpu() for name in parts[0][i]} for i in (2, 3))
    return Attribution(before, after, units, cells, {name: found[0].grid for name, found in where.items()}, size)
