"""What the processes of the default group do together. Without a group there is one process, and nothing is sent.

Every function here that sends has to be called by all processes, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from memmod.errors import MemmodError, RunError

if dist.is_available():
    # Its defaults hold the group that exists as it is imported, which DistributedDataParallel does: a group so held
    # keeps its threads, and they can abort the process at its end. Imported now, there is none yet.
    import torch.distributed.nn

T = TypeVar("T")


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if count() > 1 else 0


def share(rows: int) -> Tensor:
    """int64 ``[n]``: the rows, of so many, that are this process's: as many as the others', or one more or less."""
    return torch.arange(rows).tensor_split(count())[rank()]


def gather_rows(own: Tensor, rows: int) -> Tensor:
    """``[rows, ...]``: every process's share ``[n, ...]``, in order; gradients flow into this process's own."""
    if count() == 1:
        return own
    sizes = [len(part) for part in torch.arange(rows).tensor_split(count())]
    # A library's collective takes tensors of one shape.
    padded = own.detach().new_zeros(max(sizes), *own.shape[1:], dtype=_sendable(own.dtype))
    padded[: len(own)] = own.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    found = [part[:size].to(own.dtype) for part, size in zip(parts, sizes, strict=True)]
    found[rank()] = own
    return torch.cat(found)


def by_shares(rows: int, run: Callable[[Tensor], Tensor]) -> Tensor:
    """``[rows, ...]``: what `run` makes of row numbers ``[n]``, each process's share by itself; `run` may send too.

    Every process calls `run` once: one without a share runs row 0 for nothing.
    """
    mine = share(rows)
    return gather_rows(run(mine if len(mine) else torch.zeros(1, dtype=torch.int64))[: len(mine)], rows)


def agreed(action: Callable[[], T]) -> T:
    """What `action` returns, where it succeeds on every process.

    Raises:
        MemmodError: it failed on one: the same on all, with its number.
    """
    if count() == 1:
        return action()
    result, error = None, None
    try:
        result = action()
    except Exception as caught:
        error = caught
    failed = _exchange(None if error is None else (_kind(error), _words(error)))
    wrong = {number: found for number, found in enumerate(failed) if found is not None}
    if not wrong:
        return result
    if error is not None and not isinstance(error, MemmodError):
        raise error
    number, (kind, words) = next(iter(wrong.items()))
    same = len(wrong) == len(failed) and len(set(wrong.values())) == 1
    raise _everywhere(kind(words if same else f"on process {number} of {len(failed)}: {words}"))


def by_first(action: Callable[[], T]) -> T:
    """What `action` returns on process 0, which alone runs it.

    Raises:
        MemmodError: it failed: the same on all.
    """
    if count() == 1:
        return action()
    result: list[Any] = [None, None]
    caught = None
    if rank() == 0:
        try:
            result[0] = action()
        except Exception as error:
            caught, result[1] = error, (_kind(error), _words(error))
    dist.broadcast_object_list(result, 0)
    if result[1] is None:
        return result[0]
    if caught is not None and not isinstance(caught, MemmodError):
        raise caught
    kind, words = result[1]
    raise _everywhere(kind(words)) from caught


def check_same(what: str, values: Mapping[str, Any]) -> None:
    """Check that the processes have the same values.

    Raises:
        RunError: they do not; each field that differs is named, with the processes' values.
    """
    if count() == 1:
        return
    found = _exchange(dict(values))
    differing = [
        f"{name} is {values!r} on process 0, but {other.get(name)!r} on process {number}"
        for number, other in enumerate(found)
        for name, values in found[0].items()
        if other.get(name) != values
    ]
    if differing:
        raise _everywhere(
            RunError(
                f"the processes of this group do not work on one {what}: {'; '.join(differing)}. Start them alike, or "
                "train each by itself before the group is made"
            )
        )


def send_from_first(tensors: list[Tensor]) -> None:
    """Overwrite tensors with those of process 0."""
    if count() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def _exchange(value: Any) -> list[Any]:
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found


def _sendable(dtype: torch.dtype) -> torch.dtype:
    return torch.uint8 if dtype is torch.bool else dtype


def _kind(error: Exception) -> type[MemmodError]:
    return type(error) if isinstance(error, MemmodError) else RunError


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, (MemmodError, OSError)) else f"{type(error).__name__}: {error}"


def _everywhere(error: MemmodError) -> MemmodError:
    error.everywhere = True
    return error
