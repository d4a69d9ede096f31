"""The part of the image that a unit's position is shown by: the box of its cell, enlarged to what the position sees."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from memmod.explain.gate_path import GatedTensor, gates_at
from memmod.explain.placement import Place, places
from memmod.model import ModulatedModel

# Images of noise by which the pixels are found that a position depends on: a ReLU hides some of them in one.
PROBES = 8
# Cells around a cell whose position sees the whole height or width, where the box would say nothing.
MARGIN = 0.5

# Pixels beyond a cell: left, above, right, below.
Margins = tuple[int, int, int, int]


class Boxes:
    """Boxes in pixels for cells of memories' grids.

    A position's receptive field is found by a gradient: the pixels of noise that the units in the middle of the grid
    depend on, as many of them beyond the cell for all other cells. Where it reaches over the whole height or width, as
    behind an attention and in deep layers, the box is the cell and half of one on each side.

    Args:
        memories: names, as in `ModulatedModel.gates`.
    """

    def __init__(self, wf: ModulatedModel, memories: Iterable[str], seed: int = 0) -> None:
        shape = wf.input_shape
        self.size: tuple[int, int] = tuple(shape[-2:])
        where = places(wf, shape)
        self.places: dict[str, Place] = {name: where[name][0] for name in memories}
        self.margins = _margins(wf, self.places, shape, seed)

    def of(self, memory: str, cell: int) -> tuple[int, int, int, int] | None:
        """(x0, y0, x1, y1) of a cell, its end not included; None for -1, which is nowhere in the image."""
        if cell < 0:
            return None
        left, above, right, below = self.margins[memory]
        x0, y0, x1, y1 = _cell_box(self.places[memory].grid, cell, self.size)
        height, width = self.size
        return max(x0 - left, 0), max(y0 - above, 0), min(x1 + right, width), min(y1 + below, height)


def _margins(wf: ModulatedModel, found: dict[str, Place], shape: Sequence[int], seed: int) -> dict[str, Margins]:
    generator = torch.Generator().manual_seed(seed)
    like = next(wf.model.parameters())
    x = torch.randn(PROBES, *shape, generator=generator).to(like.device, like.dtype).requires_grad_()
    values: dict[str, Tensor] = {}

    def see(tensor: GatedTensor) -> None:
        place = found.get(tensor.memory)
        if place is None or tensor.memory in values:
            return
        # [B, k, …, K] as [B, P, K]
        by_position = tensor.gated.movedim(tensor.dim, -1).reshape(PROBES, -1, tensor.gated.shape[tensor.dim])
        middle = (place.cells == _middle(place.grid)).to(by_position.device)
        seen = by_position[:, middle]
        values[tensor.memory] = (seen * torch.randn(seen.shape[-1], generator=generator).to(seen)).sum()

    ones = {name: gate.new_ones(PROBES, gate.shape[1]) for name, gate in wf.gates().items()}
    with torch.enable_grad(), gates_at(wf, ones, see):
        wf(x, forget=-1)
    margins = {}
    for name, place in found.items():
        gradient = torch.autograd.grad(values[name], x, retain_graph=True, allow_unused=True)[0]
        depends = torch.zeros(shape[-2:], dtype=torch.bool) if gradient is None else (gradient != 0).any(0).any(0).cpu()
        margins[name] = _around(place.grid, depends)
    return margins


def _around(grid: tuple[int, int], depends: Tensor) -> Margins:
    """How far beyond the middle cell the pixels ``[H, W]`` lie that it depends on."""
    size = tuple(depends.shape)
    columns, rows = depends.any(0).nonzero().flatten().tolist(), depends.any(1).nonzero().flatten().tolist()
    if not columns or len(columns) == size[1] or len(rows) == size[0]:
        across, down = (
            max(round(MARGIN * pixels / cells), 1) for pixels, cells in zip(size[::-1], grid[::-1], strict=True)
        )
        return across, down, across, down
    x0, y0, x1, y1 = _cell_box(grid, _middle(grid), size)
    return (
        max(x0 - columns[0], 0),
        max(y0 - rows[0], 0),
        max(columns[-1] + 1 - x1, 0),
        max(rows[-1] + 1 - y1, 0),
    )


def _middle(grid: tuple[int, int]) -> int:
    return grid[0] // 2 * grid[1] + grid[1] // 2


def _cell_box(grid: tuple[int, int], cell: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1): the pixels that a cell covers, at least one."""
    row, column = divmod(cell, grid[1])
    (y0, y1), (x0, x1) = (
        (number * pixels // cells, max(-(-(number + 1) * pixels // cells), number * pixels // cells + 1))
        for number, cells, pixels in zip((row, column), grid, size, strict=True)
    )
    return x0, y0, x1, y1
