"""Finds the logits in what a model returns: a tensor, or a structure that holds several."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from memmod.errors import ModelError

LOGITS = "logits"


def named_tensors(value: Any) -> Iterator[tuple[str, Tensor]]:
    """(path, tensor) of every tensor in a structure: "logits", "1", "out.logits"; "" for a tensor itself.

    Mappings, lists, tuples (named ones by their fields), dataclasses and plain objects are opened.
    """
    return _walk(value, "", set())


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in a structure, in order."""
    return [tensor for _, tensor in named_tensors(value)]


def with_tensors(value: Any, replaced: Callable[[list[Tensor]], Sequence[Tensor]]) -> Any:
    """A structure as `named_tensors` opens it, with what `replaced` makes of its floating tensors in their places."""
    leaves, spec = tree_flatten(value)
    leaves = [_opened(leaf, replaced) for leaf in leaves]
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not places:
        return tree_unflatten(leaves, spec)
    for place, tensor in zip(places, replaced([leaves[place] for place in places]), strict=True):
        leaves[place] = tensor
    return tree_unflatten(leaves, spec)


def _opened(leaf: Any, replaced: Callable[[list[Tensor]], Sequence[Tensor]]) -> Any:
    """A leaf of a pytree; of an object that holds tensors a copy, with what `replaced` makes of them."""
    if isinstance(leaf, Tensor) or not tensors_in(leaf):
        return leaf
    opened = copy.copy(leaf)
    for name, part in _parts(leaf):
        object.__setattr__(opened, name, with_tensors(part, replaced))
    return opened


def _walk(value: Any, path: str, opened: set[int]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif id(value) not in opened:
        opened.add(id(value))
        for key, part in _parts(value):
            yield from _walk(part, f"{path}.{key}" if path else str(key), opened)


def _parts(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (list, tuple)):
        names = getattr(value, "_fields", range(len(value)))
        return list(zip(names, value, strict=False))
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name, None)) for field in fields(value)]
    if isinstance(value, (type, nn.Module)) or callable(value):
        return []
    return list(getattr(value, "__dict__", {}).items())


def logits_of(output: Any, path: str | None = None) -> Tensor:
    """The logits ``[B, C]`` in what a model returned.

    Args:
        path: where they are, as `ModulateConfig.logits` says; None: the tensor itself, else the entry called "logits",
            else the only tensor with two dimensions.

    Raises:
        ModelError: no such entry, or no certain one; the candidates are listed.
    """
    found = dict(named_tensors(output))
    if path is None:
        path = called_logits(found)
    if path is None:
        matrices = [name for name, tensor in found.items() if tensor.dim() == 2]
        if len(matrices) != 1:
            raise no_certain_logits(found, matrices)
        path = matrices[0]
    if path not in found:
        raise _no_such_entry("logits", path, found)
    return _checked(path, found[path])


def entry_of(output: Any, path: str) -> Tensor:
    """The tensor ``[B, ...]`` at `ModulateConfig.output` in what a model without a classifier returned.

    Raises:
        ModelError: no such entry, or one without samples and values.
    """
    found = dict(named_tensors(output))
    if path not in found:
        raise _no_such_entry("output", path, found)
    if found[path].dim() < 2 or not found[path].is_floating_point():
        raise ModelError(
            f"ModulateConfig.output is {path!r}, which is {found[path].dtype} of shape {tuple(found[path].shape)}; "
            f"name one of real numbers [B, ...]: the model returns {listed(found)}"
        )
    return found[path]


def _no_such_entry(option: str, path: str, found: dict[str, Tensor]) -> ModelError:
    return ModelError(
        f"ModulateConfig.{option} is {path!r}, but the model's output has no such entry: it holds {listed(found)}"
    )


def called_logits(found: dict[str, Tensor]) -> str | None:
    """The path of the tensor itself, or of the outermost entry called logits."""
    if "" in found:
        return ""
    named = [path for path in found if path.rpartition(".")[2] == LOGITS]
    depth = min((path.count(".") for path in named), default=0)
    outermost = [path for path in named if path.count(".") == depth]
    return outermost[0] if len(outermost) == 1 else None


def _checked(path: str, logits: Tensor) -> Tensor:
    if logits.dim() != 2 or not logits.is_floating_point():
        place = f"the entry {path!r} of the model's output" if path else "the model's output"
        raise ModelError(
            f"{place} has no logits [B, num_classes]: it is {logits.dtype} of shape {tuple(logits.shape)}; memmod "
            "unlearns classifiers, whose output has one score per sample and class"
        )
    return logits


def no_certain_logits(found: dict[str, Tensor], candidates: list[str]) -> ModelError:
    """What to raise where none of the tensors that a model returned is certainly the logits."""
    if not candidates:
        return ModelError(
            f"the model's output has no logits [B, num_classes]: it returned {listed(found) or 'no tensor'}"
        )
    return ModelError(
        f"the model returns several tensors that may be its logits: {listed({p: found[p] for p in candidates})}; "
        f"choose one with ModulateConfig(logits={candidates[-1]!r})"
    )


def listed(found: dict[str, Tensor]) -> str:
    """Paths with their shapes, for a message."""
    return ", ".join(f"{repr(path) if path else 'one tensor'} {tuple(t.shape)}" for path, t in found.items())
