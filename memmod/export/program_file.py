"""`torch.export` programs (.pt2): a graph of ATen operators that torch loads and runs without memmod."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from memmod.export.card import ENTRY, Exported, as_text, card, checked_path
from memmod.export.check import Run, max_deviation
from memmod.export.graph import SELECTION, Graph, trace
from memmod.files.atomic import write_atomically

if TYPE_CHECKING:
    from memmod.model import ModulatedModel
    from memmod.selection import Forget


def program(
    wf: ModulatedModel,
    path: str | os.PathLike[str],
    *,
    forget: Forget = None,
    threshold: float | None = None,
    sets: bool = False,
    any_size: bool = False,
    example_input: Any = None,
) -> Exported:
    """Write a `torch.export` program, which ``torch.export.load(path).module()`` runs in a process without memmod.

    It takes the base's inputs ``[B, ...]`` by position, B free, and the selection as ``forget=``, int64 ``[B]``
    (``[B, S]`` with `sets`), -1 for nothing; it returns the logits ``[B, C]``. For a class out of range, which a graph
    cannot refuse, every logit of the sample is NaN. It runs on the device that the model is on, and has gradients for
    no parameter. The file's entry `memmod.json` is a card that says so.

    Args:
        forget: bake this selection for good, instead of making it an input.
        threshold: with `forget`: gates below it become exactly 0.
        sets: take S classes for each sample, S free.
        any_size: keep the images' height and width free too, where the model allows it.
        example_input: what the graph is traced and checked with, B ≥ 2; default: random images of the model's shape.

    Raises:
        ExportError: `torch.export` cannot trace the model, or the program does not agree with it; nothing was written.
        SelectionError: arguments that exclude each other, or a selection that differs between samples.
    """
    path = checked_path(path, ".pt2")
    graph = trace(wf, forget, threshold, sets, any_size, example_input, wf.device)
    about = card(
        wf,
        "torch.export",
        _call(graph, path.name),
        graph.inputs,
        graph.example.batch,
        any_size,
        graph.selection,
        graph.index,
        threshold,
    )
    buffer = io.BytesIO()
    # The file would hold the example, which may be somebody's images; compilers read no more than its shapes.
    args, kwargs = graph.program.example_inputs
    graph.program.example_inputs = (tree_map(torch.zeros_like, args), tree_map(torch.zeros_like, kwargs))
    torch.export.save(graph.program, buffer, extra_files={ENTRY: as_text(about)})
    content = buffer.getvalue()
    deviation = max_deviation(wf, graph, _run(content, graph), "the exported program", threshold)
    write_atomically(path, content)
    return Exported(path, about, deviation)


def _run(content: bytes, graph: Graph) -> Run:
    module = torch.export.load(io.BytesIO(content)).module()
    device = graph.example.tensors[0].device

    def run(inputs: dict[str, Tensor], selection: Tensor | None) -> Tensor:
        named = {} if selection is None else {SELECTION: selection.to(device)}
        with torch.no_grad():
            return module(*[inputs[name].to(device) for name in graph.inputs], **named).cpu()

    return run


def _call(graph: Graph, name: str) -> list[str]:
    given = list(graph.inputs)
    if graph.selection is not None:
        given.append(f"{SELECTION}=torch.tensor({[[3, 5], [-1, -1]] if graph.selection.dim() == 2 else [3, -1]})")
    return [
        "import torch",
        f"model = torch.export.load({name!r}).module()",
        f"logits = model({', '.join(given)})",
    ]
