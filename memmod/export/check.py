"""Runs an exported file's content beside the model it was made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memmod.errors import ExportError
from memmod.export.graph import Graph

if TYPE_CHECKING:
    from memmod.model import ModulatedModel

# Other orders of summation move logits by rounding; a wrong graph moves them by their own size.
AGREEMENT = 1e-3
ROUNDINGS = 16

# What a file computes: inputs by name, the selection or None -> logits.
Run = Callable[[dict[str, Tensor], "Tensor | None"], Tensor]


def max_deviation(wf: ModulatedModel, graph: Graph, run: Run, what: str, threshold: float | None) -> float:
    """The largest difference between the logits of `run` and of the model, as a share of the largest logit.

    Over nothing, single classes and sets, as far as the file takes them, and over batches of two sizes.

    Raises:
        ExportError: it is more than rounding explains, or a class out of range does not give NaN.
    """
    inputs = graph.inputs
    logits = _logits(wf, graph, threshold)
    largest, worst = 0.0, 0.0
    for batch, selection, taller in _cases(graph, wf.num_classes):
        given = {name: _of_size(t, graph.example.batch, batch, taller) for name, t in inputs.items()}
        expected, found = _both(logits, run, given, selection, taller)
        if found.shape != expected.shape:
            raise ExportError(f"{what} gives logits of shape {tuple(found.shape)}, the model {tuple(expected.shape)}")
        largest = max(largest, float(expected.abs().max()))
        difference = float((found.to(expected) - expected).abs().max())
        worst = difference if difference != difference else max(worst, difference)
    share = worst / max(largest, torch.finfo(torch.float32).tiny)
    dtype = next(wf.model.parameters()).dtype
    bound = max(AGREEMENT, ROUNDINGS * torch.finfo(dtype).eps)
    if not share <= bound:
        raise ExportError(
            f"{what} differs from the model by {share:.2g} of the largest logit, where rounding explains {bound:.2g}: "
            "nothing was written. Export another format, or the baked network (forget=)"
        )
    if graph.selection is not None:
        _check_out_of_range(wf, graph, run, what)
    return share


def _both(
    logits: Run, run: Run, given: dict[str, Tensor], selection: Tensor | None, taller: bool
) -> tuple[Tensor, Tensor]:
    try:
        return logits(given, selection), run(given, selection)
    except Exception as error:
        if not taller:
            raise
        raise ExportError(
            f"the model does not take images of any size ({type(error).__name__}: {str(error).strip()[:200]}): leave "
            "any_size out"
        ) from error


def _logits(wf: ModulatedModel, graph: Graph, threshold: float | None) -> Run:
    positional, device = graph.positional, wf.device
    baked = None if graph.selection is not None else wf.bake(_as_forget(graph.index), threshold)

    def logits(inputs: dict[str, Tensor], selection: Tensor | None) -> Tensor:
        args = [inputs[name].to(device) for name in positional]
        kwargs = {name: t.to(device) for name, t in inputs.items() if name not in positional}
        with torch.no_grad():
            if baked is not None:
                return wf.logits(baked(*args, **kwargs)).cpu()
            return wf.logits(wf(*args, forget=selection.to(device), **kwargs)).cpu()

    return logits


def _as_forget(index: Tensor | None) -> Any:
    return -1 if index is None else set(index.flatten().tolist())


def _cases(graph: Graph, classes: int) -> Iterator[tuple[int, Tensor | None, bool]]:
    """(batch, selection, taller images) of each comparison: the example's batch, and one sample more."""
    for batch in (graph.example.batch, graph.example.batch + 1):
        taller = graph.any_size and batch > graph.example.batch
        if graph.selection is None:
            yield batch, None, taller
            continue
        single = torch.arange(batch).remainder(classes + 1) - 1
        if graph.selection.dim() == 1:
            yield batch, torch.full_like(single, -1), taller
            yield batch, single, taller
            yield batch, classes - 1 - torch.arange(batch).remainder(classes), taller
        else:
            yield batch, single.unsqueeze(1), taller
            yield batch, torch.stack((single, single, single.flip(0)), 1), taller


def _of_size(t: Tensor, batch: int, wanted: int, taller: bool) -> Tensor:
    """t ``[B, ...]`` with its samples repeated, and images twice as high; what has no samples stays as it is."""
    if t.dim() == 0 or t.shape[0] != batch:
        return t
    t = t[torch.arange(wanted) % batch]
    return t.repeat(1, 1, 2, 1) if taller and t.dim() == 4 else t


def _check_out_of_range(wf: ModulatedModel, graph: Graph, run: Run, what: str) -> None:
    for number in (wf.num_classes, -2):
        selection = torch.full_like(graph.selection, -1, device="cpu")
        selection[0, ...] = number
        wrong = run(graph.inputs, selection).isnan().flatten(1)
        if not wrong[0].all() or wrong[1:].any():
            raise ExportError(
                f"{what} does not answer class {number}, which is out of range, with NaN alone for that sample"
            )
