"""ONNX files: one graph that runs wherever ONNX does, with the selection as an input."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memmod.errors import ExportError
from memmod.export.card import KEY, Exported, as_text, card, checked_path
from memmod.export.check import Run, max_deviation
from memmod.export.graph import SELECTION, Graph, trace
from memmod.files.atomic import write_atomically

if TYPE_CHECKING:
    from memmod.model import ModulatedModel
    from memmod.selection import Forget

NEEDS = ("onnx", "onnxscript", "onnxruntime")
OUTPUT = "logits"
# A protocol buffer holds less than 2 GiB.
LARGEST = 2**31 - 2**24


def onnx(
    wf: ModulatedModel,
    path: str | os.PathLike[str],
    *,
    forget: Forget = None,
    threshold: float | None = None,
    sets: bool = False,
    any_size: bool = False,
    example_input: Any = None,
) -> Exported:
    """Write an ONNX file, and check it in onnxruntime beside the model.

    Inputs are the base's, by the names of its arguments, ``[batch, ...]``, and `forget`, int64 ``[batch]``
    (``[batch, classes]`` with `sets`), -1 for nothing; the output is `logits` ``[batch, C]``. For a class out of range,
    which a graph cannot refuse, every logit of the sample is NaN. The metadata entry `memmod` is a card that says so.

    `forget`, `threshold`, `sets`, `any_size` and `example_input` are as in `memmod.export.program`.

    Raises:
        ExportError: as `memmod.export.program`; a package of the extra [onnx] is missing, or the model is too large for
            one file.
        SelectionError: as `memmod.export.program`.
    """
    path = checked_path(path, ".onnx")
    _check_packages()
    size = sum(t.numel() * t.element_size() for t in wf.model.state_dict().values())
    if size > LARGEST:
        raise ExportError(
            f"the model has {size / 2**30:.1f} GiB of weights, one ONNX file holds less than 2: export a torch.export "
            "program, or convert the model to half precision before it is modulated"
        )
    dtypes = {t.dtype for t in wf.model.state_dict().values()}
    if torch.bfloat16 in dtypes:
        raise ExportError(
            "the model has weights in bfloat16, which numpy does not know: convert it by float() "
            "or half(), or export a torch.export program"
        )
    graph = trace(wf, forget, threshold, sets, any_size, example_input, "cpu")
    about = card(
        wf,
        "onnx",
        _call(graph, path.name),
        graph.inputs,
        graph.example.batch,
        any_size,
        graph.selection,
        graph.index,
        threshold,
    )
    content = _content(graph, as_text(about))
    deviation = max_deviation(wf, graph, _run(content), "the ONNX file", threshold)
    write_atomically(path, content)
    return Exported(path, about, deviation)


def _check_packages() -> None:
    for name in NEEDS:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ExportError(
                f"an ONNX file needs {', '.join(NEEDS)}, but {name} cannot be imported ({error}): "
                "pip install 'memmod-torch[onnx]'"
            ) from None


def _content(graph: Graph, text: str) -> bytes:
    names = [*graph.inputs, *([SELECTION] if graph.selection is not None else [])]
    try:
        # The exporter tells its progress on the standard output.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                graph.program, dynamo=True, input_names=names, output_names=[OUTPUT], verbose=False
            )
    except Exception as error:
        raise ExportError(
            f"torch.onnx cannot write this model: {type(error).__name__}: {str(error).strip()[:600]}"
        ) from error
    exported.rename_axes(_axes(exported.model.graph.inputs))
    exported.model.metadata_props[KEY] = text
    proto = exported.model_proto
    importlib.import_module("onnx").checker.check_model(proto)
    return proto.SerializeToString()


def _axes(inputs: Any) -> dict[str, str]:
    """Names for the sizes that are free: from the exporter's symbols to words."""
    words: dict[str, str] = {}
    for value in inputs:
        for place, size in enumerate(value.shape):
            if not isinstance(size, int):
                word = "classes" if value.name == SELECTION and place == 1 else ("batch", "1", "height", "width")[place]
                words.setdefault(str(size), word)
    return words


def _run(content: bytes) -> Run:
    runtime = importlib.import_module("onnxruntime")
    try:
        session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"onnxruntime cannot load the ONNX file of this model: {str(error).strip()[:600]}") from error

    def run(inputs: dict[str, Tensor], selection: Tensor | None) -> Tensor:
        given = {name: t.cpu() for name, t in inputs.items()}
        if selection is not None:
            given[SELECTION] = selection
        return torch.from_numpy(session.run([OUTPUT], {name: t.numpy() for name, t in given.items()})[0])

    return run


def _call(graph: Graph, name: str) -> list[str]:
    given = [f"{key!r}: {key}" for key in graph.inputs]
    if graph.selection is not None:
        given.append(
            f"{SELECTION!r}: np.array({[[3, 5], [-1, -1]] if graph.selection.dim() == 2 else [3, -1]}, np.int64)"
        )
    return [
        "import numpy as np",
        "import onnxruntime",
        f"session = onnxruntime.InferenceSession({name!r})",
        f"logits = session.run([{OUTPUT!r}], {{{', '.join(given)}}})[0]",
    ]
