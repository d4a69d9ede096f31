"""Selections: which classes each sample forgets; from what a user writes to an index, held while a model runs."""

from __future__ import annotations

import operator
import threading
from collections.abc import Sequence, Set
from typing import Any, TypeAlias

import torch
from torch import Tensor

from memmod.errors import SelectionError

Forget: TypeAlias = "int | str | Tensor | Sequence[Any] | Set[Any] | None"

NOTHING = -1


def to_index(
    forget: Forget,
    num_classes: int,
    class_names: Sequence[str] | None = None,
    device: torch.device | str | None = None,
) -> Tensor | None:
    """Normalise a selection to the index that layers take.

    Args:
        forget: -1 (nothing), an int or a class name (the whole batch), a set of them (all of the set, for the whole
            batch), an int64 tensor (0-d, ``[B]`` or ``[B, S]``), or a list with one entry per sample (int, name, set).
        num_classes: C; class numbers lie in [0, C).
        class_names: C names, where the model has them.
        device: where the layers are; tensors must already be there.

    Returns:
        int64 ``[B]`` or ``[B, S]``, contiguous, -1 = nothing; ``[1]`` or ``[1, S]`` where one selection serves the
        whole batch; None where nothing is selected at all.

    Raises:
        SelectionError: an unknown name, a class out of range, a wrong dtype, shape, device or type. The values of a
            tensor are not looked at here (that would wait for the device); the ops check them.
    """
    if isinstance(forget, Tensor):
        return _tensor_index(forget, device)
    if isinstance(forget, (set, frozenset)):
        entries = _set_entries(forget, num_classes, class_names)
        return torch.tensor([entries], dtype=torch.int64, device=device) if entries else None
    if isinstance(forget, (list, tuple)):
        return _list_index(forget, num_classes, class_names, device)
    number = _class_number(forget, num_classes, class_names)
    return None if number == NOTHING else torch.tensor([number], dtype=torch.int64, device=device)


def _tensor_index(forget: Tensor, device: torch.device | str | None) -> Tensor:
    if forget.dtype != torch.int64:
        raise SelectionError(
            f"the selection is a tensor of {forget.dtype}; class numbers are int64: pass forget.to(torch.int64)"
        )
    if forget.dim() > 2:
        raise SelectionError(
            f"the selection has shape {tuple(forget.shape)}; it must be 0-d, [B] or [B, S] (B samples, S classes each)"
        )
    if device is not None and forget.device != torch.device(device):
        raise SelectionError(
            f"the selection is on {forget.device} but the model's memories are on {device}: "
            f"pass forget.to({str(device)!r})"
        )
    if not torch.compiler.is_compiling() and forget.is_inference() and not torch.is_inference_mode_enabled():
        forget = forget.clone()
    return (forget.reshape(1) if forget.dim() == 0 else forget).contiguous()


def _list_index(
    forget: Sequence[Any],
    num_classes: int,
    class_names: Sequence[str] | None,
    device: torch.device | str | None,
) -> Tensor:
    rows = []
    for sample, entry in enumerate(forget):
        if isinstance(entry, (set, frozenset)):
            rows.append(_set_entries(entry, num_classes, class_names))
        elif isinstance(entry, (list, tuple, Tensor)):
            raise SelectionError(
                f"entry {sample} of the selection is a {type(entry).__name__}: a list has one entry per sample, each "
                "an int, a class name or a set of them"
            )
        else:
            rows.append([_class_number(entry, num_classes, class_names)])
    width = max((len(row) for row in rows), default=1) or 1
    padded = [row + [NOTHING] * (width - len(row)) for row in rows]
    index = torch.tensor(padded, dtype=torch.int64, device=device).reshape(len(rows), width)
    return index[:, 0].contiguous() if width == 1 else index


def _set_entries(forget: Set[Any], num_classes: int, class_names: Sequence[str] | None) -> list[int]:
    numbers = {_class_number(entry, num_classes, class_names) for entry in forget}
    return sorted(numbers - {NOTHING})


def _class_number(entry: Any, num_classes: int, class_names: Sequence[str] | None) -> int:
    if isinstance(entry, str):
        if class_names is None:
            raise SelectionError(
                f"the selection names the class {entry!r}, but this model has no class names: pass its number "
                f"(0 to {num_classes - 1}), or give class_names to modulate()"
            )
        if entry not in class_names:
            known = ", ".join(map(repr, list(class_names)[:20])) + (", ..." if len(class_names) > 20 else "")
            raise SelectionError(f"unknown class name {entry!r}; this model knows {known}")
        return list(class_names).index(entry)
    try:
        if isinstance(entry, bool):
            raise TypeError
        number = operator.index(entry)
    except TypeError:
        raise SelectionError(
            f"{entry!r} ({type(entry).__name__}) is not a selection: pass an int, a class name, a set of them, a list "
            "with one entry per sample, or an int64 tensor"
        ) from None
    if not NOTHING <= number < num_classes:
        raise SelectionError(
            f"class {number} is out of range: this model has {num_classes} classes, 0 to {num_classes - 1} "
            "(-1 selects nothing)"
        )
    return number


class _Local(threading.local):
    index: Tensor | None = None
    depth: int = 0
    batch_statistics: bool = False
    probe: Any = None


class SelectionState:
    """What a model's layers share while it runs: the selection, held per thread.

    One object per model. Copies and pickles of a model get a fresh one, which all of the copy's layers share.
    """

    def __init__(self) -> None:
        self._local = _Local()
        self._backward: dict[int, tuple[Tensor | None, bool]] = {}
        self._scope_without_forward = False

    def __deepcopy__(self, memo: dict) -> SelectionState:
        return type(self)()

    def __reduce__(self) -> tuple:
        return (type(self), ())

    @property
    def index(self) -> Tensor | None:
        """The selection layers use now: ``[B]``, ``[B, S]``, ``[1]``, ``[1, S]`` or None (nothing).

        Raises:
            SelectionError: activation checkpointing recomputes a layer whose selection has ended.
        """
        return self._now()[0]

    @property
    def batch_statistics(self) -> bool:
        """Whether normalised units use the batch's own statistics now."""
        return self._now()[1]

    @property
    def probe(self) -> Any:
        """A callable that stands in for the layers' memories while a model is being verified; else None."""
        return self._local.probe

    def _now(self) -> tuple[Tensor | None, bool]:
        local = self._local
        if torch.compiler.is_compiling():
            return local.index, local.batch_statistics
        task = torch._C._current_graph_task_id()
        if task == -1:
            return local.index, local.batch_statistics
        # Inside a backward pass: activation checkpointing runs the forward again.
        if task in self._backward:
            return self._backward[task]
        if local.depth == 0 and self._scope_without_forward:
            raise SelectionError(
                "activation checkpointing recomputes this model in the backward pass, where the selection of its "
                "forward is unknown: keep `with model.forgetting(...)` open around backward(), or call "
                "model(x, forget=...)"
            )
        return local.index, local.batch_statistics

    def enter(self, index: Tensor | None) -> tuple[Tensor | None, int]:
        """Make `index` the selection of this thread; returns what `leave` takes to undo it."""
        local = self._local
        token = (local.index, local.depth)
        local.index = index
        local.depth += 1
        return token

    def leave(self, token: tuple[Tensor | None, int]) -> None:
        """Restore the selection that was in force before the matching `enter`."""
        self._local.index, self._local.depth = token

    def note_scope(self) -> None:
        """Record that layers may run under a selection outside the model's own forward."""
        if torch.is_grad_enabled():
            self._scope_without_forward = True

    def set_batch_statistics(self, on: bool) -> bool:
        """Switch statistics in the loop for this thread; returns the previous value."""
        before = self._local.batch_statistics
        self._local.batch_statistics = on
        return before

    def set_probe(self, probe: Any) -> None:
        """Install (or remove, with None) the callable that stands in for the layers' memories, for this thread."""
        self._local.probe = probe

    def remember_for_backward(self, output: Any) -> None:
        """Tie the current selection to the graph of `output`, so that a recompute in its backward finds it.

        Activation checkpointing runs layers again inside backward, when the scope has ended. The first node of this
        forward's graph that backward reaches is the one that made `output`; it announces the selection.
        """
        value = (self._local.index, self._local.batch_statistics)
        seen = set()
        for tensor in _tensors(output):
            node = tensor.grad_fn
            if node is None or node in seen:
                continue
            seen.add(node)
            node.register_prehook(lambda _grads, value=value: self._announce(value))

    def _announce(self, value: tuple[Tensor | None, bool]) -> None:
        task = torch._C._current_graph_task_id()
        if task not in self._backward:
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self._backward.pop(task, None))
        self._backward[task] = value


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [tensor for part in output for tensor in _tensors(part)]
    return []
