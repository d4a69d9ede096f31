"""Where in the image the rows and positions of a layer's tensor lie: pixels of a grid, tokens, windows of either."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memmod.explain.gate_path import GatedTensor, gated_layers, gates_at, in_this_thread, memory_name
from memmod.model import ModulatedModel

# More tokens than this in front of a grid's are no class tokens and registers.
MOST_PREFIX = 16


@dataclass(frozen=True)
class Place:
    """Where one sample's positions of a gated tensor lie.

    Args:
        grid: rows and columns that the image is divided into.
        cells: int64 ``[P]``, the cell (row · columns + column) of each position; -1: nowhere in the image. P counts
            all that a sample has: of ``[k·B, …]`` with units at one dim, k times the sizes of the others.
    """

    grid: tuple[int, int]
    cells: Tensor


NOWHERE = (1, 1)


@torch.no_grad()
def places(wf: ModulatedModel, shape: Sequence[int], seed: int = 0) -> dict[str, tuple[Place, ...]]:
    """Where the positions of every gated tensor lie in an image, by memory and call, from one run on noise.

    A convolution's positions are a grid; tokens are one behind tokens of their own (class tokens, registers), of the
    shape that an earlier layer's grid had; rows cut into windows (arXiv 2103.14030) are found by their values among the
    tokens that they were cut from. What is found nowhere, behind a pooling say, has no cells.

    Args:
        shape: of one sample, ``[C, H, W]``.
    """
    # Two samples, so that a batch of one is not taken for something else; rows are compared by value, so noise.
    like = next(wf.model.parameters())
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, *shape, generator=generator).to(like.device, like.dtype)
    finder = _Finder(len(x), tuple(shape[-2:]))
    layers = gated_layers(wf)
    see_grid = in_this_thread(lambda _module, _args, output: finder.see_grid(output))
    handles = [module.register_forward_hook(see_grid) for module in wf.model.modules()]
    handles += [
        layer.register_forward_pre_hook(in_this_thread(lambda _m, args, name=name: finder.see_input(name, args[0])))
        for name, layer in layers.items()
    ]
    gates = {name: gate.new_ones(len(x), gate.shape[1]) for name, gate in wf.gates().items()}
    try:
        with torch.enable_grad(), gates_at(wf, gates, finder.see_gated):
            wf(x, forget=-1)
    finally:
        for handle in handles:
            handle.remove()
    return {
        memory_name(name, own): tuple(finder.found[memory_name(name, own)])
        for name in layers
        for own, _ in layers[name].memories()
    }


class _Finder:
    """Keeps the grids seen so far, and places gated tensors by them."""

    def __init__(self, samples: int, size: tuple[int, int]) -> None:
        self.samples, self.size = samples, size
        self.grids: dict[tuple[int, int], None] = {}
        # Cells of rows of the last tensors with units at the end, by the rows' values.
        self.rows: dict[bytes, tuple[tuple[int, int], int]] = {}
        self.windows: dict[tuple[str, tuple[int, ...]], Place] = {}
        self.inputs: dict[str, Place | None] = {}
        self.found: defaultdict[str, list[Place]] = defaultdict(list)

    def see_grid(self, output: object) -> None:
        """Any module's output: a new grid, or rows by whose values windows are known."""
        if not isinstance(output, Tensor) or output.dim() not in (3, 4) or output.shape[0] != self.samples:
            return
        if output.dim() == 4:
            grid = self._grid_of(output.shape[1:])
            if grid is None:
                return
            self.grids[grid] = None
            place = Place(grid, torch.arange(math.prod(grid)))
            rows = output[0].flatten(0, 1) if output.shape[1:3] == grid else output[0].flatten(1).t()
        else:
            place, rows = self._tokens(output.shape[1]), output[0]
        if place is not None:
            self.rows |= {
                row.cpu().numpy().tobytes(): (place.grid, int(cell))
                for row, cell in zip(rows.detach().contiguous(), place.cells, strict=True)
            }

    def see_input(self, layer: str, x: Tensor) -> None:
        """A gated layer's input, by which its output's windows are known."""
        self.inputs[layer] = self._windows(layer, x) if x.shape[0] != self.samples else None

    def see_gated(self, tensor: GatedTensor) -> None:
        """Place a gated tensor."""
        layer = tensor.memory.rpartition(".")[0]
        shape = list(tensor.open.shape)
        del shape[tensor.dim]
        positions = shape[0] // self.samples * math.prod(shape[1:])
        place = None
        if shape[0] != self.samples:
            place = self.inputs.get(layer)
        elif len(shape) == 3:
            place = Place((shape[1], shape[2]), torch.arange(positions))
            self.grids[place.grid] = None
        elif len(shape) == 2:
            place = self._tokens(shape[1])
        if place is None or len(place.cells) != positions:
            place = Place(NOWHERE, torch.full((positions,), -1))
        self.found[tensor.memory].append(place)

    def _grid_of(self, shape: Sequence[int]) -> tuple[int, int] | None:
        """Of ``[C, h, w]`` or ``[h, w, C]``: the pair that has the image's proportions, and is no pooled pixel."""
        height, width = self.size
        fits = [
            pair
            for pair in ((shape[1], shape[2]), (shape[0], shape[1]))
            if pair[0] * width == pair[1] * height and 1 < pair[0] <= height
        ]
        return fits[0] if len(fits) == 1 else None

    def _tokens(self, count: int) -> Place | None:
        """The largest grid seen that leaves few tokens over; those stand in front."""
        fits = [grid for grid in self.grids if 1 < math.prod(grid) <= count <= math.prod(grid) + MOST_PREFIX]
        if not fits:
            return None
        grid = max(fits, key=math.prod)
        cells = math.prod(grid)
        return Place(grid, torch.cat((torch.full((count - cells,), -1), torch.arange(cells))))

    def _windows(self, layer: str, x: Tensor) -> Place | None:
        """Rows ``[k·B, n, C]`` by the values that earlier rows had; by a sibling's where they have been mixed since."""
        group = (layer.rpartition(".")[0], tuple(x.shape[:-1]))
        own = x[: x.shape[0] // self.samples].detach().flatten(0, -2)
        seen = [self.rows.get(row.cpu().numpy().tobytes()) for row in own.contiguous()]
        placed = [entry for entry in seen if entry is not None and entry[1] >= 0]
        if placed:
            grid = placed[0][0]
            cells = [entry[1] if entry is not None and entry[0] == grid else -1 for entry in seen]
            self.windows[group] = Place(grid, torch.tensor(cells))
        return self.windows.get(group)


def onto_image(values: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Spread values ``[B, h·w]`` of a grid's cells over the pixels ``[B, H, W]``, smoothly, each cell's sum kept."""
    rows, columns = (_spread(cells, pixels).to(values) for cells, pixels in zip(grid, size, strict=True))
    return rows @ values.unflatten(1, grid) @ columns.t()


def _spread(cells: int, pixels: int) -> Tensor:
    """``[pixels, cells]``: linear interpolation between the cells' middles, each column's sum 1."""
    identity = torch.eye(cells, dtype=torch.float64).unsqueeze(1)
    spread = nn.functional.interpolate(identity, size=pixels, mode="linear", align_corners=False).squeeze(1).t()
    if pixels < cells:
        # Interpolation would skip cells: each falls to the pixel that holds its middle.
        spread = torch.zeros(pixels, cells, dtype=torch.float64)
        spread[(torch.arange(cells) * pixels + pixels // 2) // cells, torch.arange(cells)] = 1.0
    return spread / spread.sum(0, keepdim=True)
