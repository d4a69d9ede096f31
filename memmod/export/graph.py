"""A model's logits as one graph of ATen operators, by `torch.export`; the selection is one of its inputs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from memmod.errors import ExportError, SelectionError
from memmod.export.aten import decompositions
from memmod.outputs import logits_of
from memmod.selection import to_index
from memmod.surgery.base_copy import without_compilation
from memmod.surgery.example import Example

if TYPE_CHECKING:
    from memmod.model import ModulatedModel
    from memmod.selection import Forget

SELECTION = "forget"
# Of what torch.export says; the rest is the code that it traced.
MOST_LINES = 4


class _Gated(nn.Module):
    """The logits ``[B, C]`` of a modulated model, for a selection that is an input; NaN where it is out of range."""

    def __init__(self, wf: ModulatedModel, keywords: Sequence[str]) -> None:
        super().__init__()
        self.wf = wf
        self.keywords = tuple(keywords)

    def forward(self, *inputs: Tensor, forget: Tensor) -> Tensor:
        args, kwargs = _split(inputs, self.keywords)
        logits = self.wf.logits(self.wf(*args, forget=forget, **kwargs))
        # Runtimes differ in what a ReLU or a maximum makes of the NaN that such a class gives inside.
        wrong = (forget < -1) | (forget >= self.wf.num_classes)
        wrong = wrong if wrong.dim() == 1 else wrong.any(1)
        return logits.masked_fill(wrong.view(-1, *[1] * (logits.dim() - 1)), float("nan"))


class _Baked(nn.Module):
    """The logits ``[B, C]`` of an ordinary module."""

    def __init__(self, model: nn.Module, logits: str | None, keywords: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.place = logits
        self.keywords = tuple(keywords)

    def forward(self, *inputs: Tensor) -> Tensor:
        args, kwargs = _split(inputs, self.keywords)
        return logits_of(self.model(*args, **kwargs), self.place)


def _split(inputs: tuple[Tensor, ...], keywords: tuple[str, ...]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Positional and keyword arguments of the base: a program takes all by position."""
    # torch.export cannot write the guards of **kwargs.
    count = len(inputs) - len(keywords)
    return inputs[:count], dict(zip(keywords, inputs[count:], strict=True))


@dataclass(frozen=True)
class Graph:
    """A program, the example that it was traced with, and what was asked for."""

    program: ExportedProgram
    example: Example
    selection: Tensor | None
    index: Tensor | None
    any_size: bool
    positional: list[str]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """An example of each input but the selection, in the program's order, by the name of the base's argument."""
        return {**dict(zip(self.positional, self.example.args, strict=True)), **self.example.kwargs}


def trace(
    wf: ModulatedModel,
    forget: Forget,
    threshold: float | None,
    sets: bool,
    any_size: bool,
    example_input: Any,
    device: torch.device | str,
) -> Graph:
    """The graph of a modulated model; `forget` None: with the selection as an input, else baked.

    Raises:
        ExportError: `torch.export` cannot trace the model as asked, an input is no tensor, or there is no classifier.
        SelectionError: `sets` or a threshold beside what they do not fit, or a selection that differs between samples.
    """
    if wf.config.output is not None:
        raise ExportError(
            f"exported files give logits, but {type(wf.model).__name__} has no classifier: it was modulated with "
            f"output={wf.config.output!r}. Export what wf.bake(...) returns, with torch.export or torch.onnx"
        )
    if forget is None and threshold is not None:
        raise SelectionError("a threshold closes gates for good: name what to forget, or leave threshold out")
    if forget is not None and sets:
        raise SelectionError(
            "sets=True makes the selection an input of sets, but forget= bakes one for good: leave one out"
        )
    example = wf.checking_example(example_input).to(device)
    positional = argument_names(wf.model, example)
    for name, value in (*zip(positional, example.args, strict=True), *example.kwargs.items()):
        if not isinstance(value, Tensor):
            raise ExportError(
                f"the model's argument {name} is a {type(value).__name__} in the example; an exported graph takes "
                "tensors alone: wrap the model in a module that fixes this argument"
            )
    selection, index = None, None
    if forget is None:
        module: nn.Module = _Gated(_frozen_copy(wf).to(device), list(example.kwargs))
        selection = _selection(wf.num_classes, example.batch, sets).to(device)
    else:
        index = to_index(forget, wf.num_classes, wf.class_names, wf.device)
        module = _Baked(wf.bake(forget, threshold).to(device), wf.config.logits, list(example.kwargs))
    program = _program(module.eval().requires_grad_(False), example, selection, any_size)
    return Graph(program, example, selection, index, any_size, positional)


def _frozen_copy(wf: ModulatedModel) -> ModulatedModel:
    """A copy with no scope open, whose memories do not train: a program keeps the flags of its parameters."""
    wf = copy.deepcopy(wf)
    wf.model = without_compilation(wf.model)
    return wf


def argument_names(model: nn.Module, example: Example) -> list[str]:
    """What the model's forward calls the positional arguments of an example."""
    parameters = inspect.signature(without_compilation(model).forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return names[: len(example.args)] + [f"input_{n}" for n in range(len(names), len(example.args))]


def _selection(num_classes: int, batch: int, sets: bool) -> Tensor:
    """A selection to trace with: its values are not read, and a size of 1 would be taken for a constant."""
    first = torch.arange(batch) % num_classes
    return torch.stack((first, torch.full_like(first, -1)), 1) if sets else first


def _program(module: nn.Module, example: Example, selection: Tensor | None, any_size: bool) -> ExportedProgram:
    batch = Dim("batch", min=1)

    def shape(t: Tensor) -> dict[int, Any]:
        sizes = {2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if any_size and t.dim() == 4 else {}
        return {0: batch, **sizes} if t.dim() > 0 and t.shape[0] == example.batch else sizes

    args = (*example.args, *example.kwargs.values())
    kwargs: dict[str, Tensor] = {}
    shapes: dict[str, Any] = {"inputs": tuple(shape(t) for t in args)}
    if selection is not None:
        kwargs[SELECTION] = selection
        shapes[SELECTION] = {0: batch} if selection.dim() == 1 else {0: batch, 1: Dim("classes", min=1)}
    try:
        with torch.no_grad():
            program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes)
            return program.run_decompositions(decompositions())
    except Exception as error:
        what = "images of any size: leave any_size out" if any_size else "batches of any size"
        words = "\n".join(str(error).strip().splitlines()[:MOST_LINES])
        raise ExportError(
            f"torch.export cannot trace the model for {what}; it says {type(error).__name__}: {words}"
        ) from error
