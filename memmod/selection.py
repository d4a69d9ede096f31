"""Selections: which classes each sample forgets; from what a user writes to the index that layers take."""

from __future__ import annotations

import operator
from collections.abc import Sequence, Set
from typing import Any, TypeAlias

import torch
from torch import Tensor

from memmod.errors import SelectionError

Class: TypeAlias = "int | str"
Forget: TypeAlias = "Class | Tensor | Sequence[Class | Set[Class]] | Set[Class] | None"

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
        # operator.index would make compiled code hold for one value alone.
        number = entry if type(entry) is int else operator.index(entry)
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
