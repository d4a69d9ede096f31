"""What a model's layers share while it runs: the selection in force, by thread, by task and by generator.

A running `forward` of the model holds its selection in a thread-local, which compiled code reads through a guard.
Between forwards open scopes (`forgetting`, `batch_statistics`) hold it in a context variable, so that asyncio tasks
that take turns in one thread have each their own. Generators take turns within one context: a scope of theirs holds
while they run.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memmod.errors import SelectionError
from memmod.outputs import tensors_in

_GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR | inspect.CO_COROUTINE

# Functions that Dynamo neither traces nor compiles. Made when first needed: torch._dynamo takes a second to import.
eagerly = functools.cache(torch.compiler.disable)


class Running(NamedTuple):
    """What layers obey: `index` ``[B]``, ``[B, S]``, ``[1]``, ``[1, S]`` or None (nothing), and whose statistics."""

    index: Tensor | None = None
    batch_statistics: bool = False


class _Call(threading.local):
    """What the forward that runs in this thread was called with."""

    def __init__(self) -> None:
        # Not on the class: a guard of compiled code cannot check an attribute that an instance gets only later.
        self.active = False
        self.index: Tensor | None = None
        self.batch_statistics = False
        self.probe: Any = None


class _Open:
    """An open scope: of a context, in a chain with those `outer` to it; or of a generator, which is its `owner`."""

    _numbers = itertools.count()

    def __init__(self, running: Running, owner: FrameType | None, outer: _Open | None, inside: FrameType | None):
        self.index, self.batch_statistics = running
        self.owner = owner
        self.outer = outer
        # The innermost generator with a scope of its own that ran when this one was opened.
        self.inside = inside
        self.number = next(self._numbers)
        self.home = _here()
        self.closed = False

    @property
    def running(self) -> Running:
        return Running(self.index, self.batch_statistics)

    @property
    def is_over(self) -> bool:
        """Whether it has been closed; a task that inherited it keeps it."""
        return self.closed and self.home == _here()


class RunState:
    """What a model's layers share while it runs.

    One object per model. Copies and pickles of a model get a fresh one, which all of the copy's layers share.
    """

    def __init__(self) -> None:
        self._call = _Call()
        self._scope: ContextVar[_Open | None] = ContextVar("memmod scope", default=None)
        self._of_generators: list[_Open] = []
        # For compiled code, which reads no more than it must: whether a scope was ever opened, and by a generator.
        self._scoped = False
        self._generators = False
        self._in_scope_eagerly = eagerly(RunState._in_scope)
        self._backward: dict[int, Running] = {}
        self._scope_without_forward = False

    def __deepcopy__(self, memo: dict[int, Any]) -> RunState:
        return type(self)()

    def __reduce__(self) -> tuple[type[RunState], tuple[()]]:
        return (type(self), ())

    @property
    def index(self) -> Tensor | None:
        """The selection that layers obey: ``[B]``, ``[B, S]``, ``[1]``, ``[1, S]`` or None (nothing).

        Raises:
            SelectionError: activation checkpointing recomputes a layer whose selection has ended, or a generator that
                opened a scope is suspended.
        """
        return self.running()[0]

    @property
    def batch_statistics(self) -> bool:
        """Whether normalised units use the batch's own statistics. Raises SelectionError as `index`."""
        return self.running()[1]

    @property
    def probe(self) -> Any:
        """A callable that stands in for the layers' memories while a model is being verified; else None."""
        return self._call.probe

    def set_probe(self, probe: Any) -> None:
        """Install (or remove, with None) the callable that stands in for the layers' memories, for this thread."""
        self._call.probe = probe

    @property
    def in_call(self) -> bool:
        """Whether a forward, or compiled code with a scope of its own, holds the selection; else an open scope may."""
        return self._call.active

    def running(self) -> Running:
        """What layers obey. Raises SelectionError as `index`."""
        call = self._call
        if torch.compiler.is_compiling():
            if call.active:
                return Running(call.index, call.batch_statistics)
            if not self._scoped:
                return Running()
            if self._generators:
                return self._in_scope_eagerly(self)
            scope = self._scope.get()
            return Running() if scope is None else Running(scope.index, scope.batch_statistics)
        task = torch._C._current_graph_task_id()
        # In a backward pass activation checkpointing runs the forward again.
        if task != -1 and task in self._backward:
            return self._backward[task]
        if call.active:
            return Running(call.index, call.batch_statistics)
        if task != -1 and self._scope_without_forward and self._innermost() is None and not self._of_generators:
            raise SelectionError(
                "activation checkpointing recomputes this model in the backward pass, where the selection of its "
                "forward is unknown: keep `with model.forgetting(...)` open around backward(), or call "
                "model(x, forget=...)"
            )
        return self._in_scope()

    def selecting(self, index: Tensor | None) -> Running:
        """What layers obey where `index` is selected inside of the scopes that are open."""
        call = self._call
        if call.active or torch.compiler.is_compiling():
            return Running(index, self.batch_statistics)
        scope = self._running_scope()
        return Running(index, scope is not None and scope.batch_statistics)

    def _innermost(self) -> _Open | None:
        scope = self._scope.get()
        while scope is not None and scope.is_over:
            scope = scope.outer
        return scope

    def _running_scope(self) -> _Open | None:
        """The innermost scope of this context and of the generators that run."""
        scope = self._innermost()
        if not self._of_generators:
            return scope
        own = self._of_running_generator()
        if own is None or (scope is not None and scope.inside is own.owner and scope.number > own.number):
            return scope
        return own

    def _of_running_generator(self) -> _Open | None:
        owners = {scope.owner: scope for scope in self._of_generators}
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame in owners:
                return owners[frame]
            frame = frame.f_back
        return None

    def _in_scope(self) -> Running:
        """What the innermost scope says. Raises SelectionError where a suspended generator's scope may be meant."""
        scope = self._running_scope()
        if self._of_generators and (scope is None or scope.owner is None):
            here = _here()
            for other in self._of_generators:
                inside = scope is not None and scope.number > other.number
                if other.home == here and not inside:
                    raise SelectionError(
                        f"{other.owner.f_code.co_name!r} is suspended inside of a scope (`forgetting`, "
                        "`batch_statistics`) that it opened, so it is not clear whether the scope is meant to hold "
                        "here: pass forget= (-1 for nothing), close that generator first, or make a scope of it with "
                        "contextlib.contextmanager"
                    )
        return Running() if scope is None else scope.running

    def enter(self, running: Running) -> tuple[bool, Tensor | None, bool]:
        """Have `running` hold for the forward of this thread, until `leave`, which takes what this returns."""
        call = self._call
        before = (call.active, call.index, call.batch_statistics)
        call.active, call.index, call.batch_statistics = True, running.index, running.batch_statistics
        return before

    def leave(self, before: tuple[bool, Tensor | None, bool]) -> None:
        """Restore what held before the matching `enter`."""
        call = self._call
        call.active, call.index, call.batch_statistics = before

    def _open(self, running: Running, frame: FrameType) -> _Open:
        owner = _generator_at(frame)
        own = self._of_running_generator() if self._of_generators else None
        scope = _Open(running, owner, self._innermost(), None if own is None else own.owner)
        self._scoped = True
        if owner is None:
            self._scope.set(scope)
        else:
            self._of_generators.append(scope)
            self._generators = True
        if torch.is_grad_enabled():
            # Layers may run under it outside of the model's own forward.
            self._scope_without_forward = True
        return scope

    def _close(self, scope: _Open) -> None:
        """End a scope, in whatever order and context scopes end."""
        scope.closed = True
        if scope.owner is None:
            self._scope.set(self._innermost())
        else:
            self._of_generators.remove(scope)
            self._generators = bool(self._of_generators)

    def remember_for_backward(self, output: Any) -> None:
        """Tie what holds now to the graph of `output`, so that a recompute in its backward finds it.

        Activation checkpointing runs layers again inside backward, when the scope has ended. The first node of this
        forward's graph that backward reaches is the one that made `output`; it announces the selection.
        """
        value = Running(self._call.index, self._call.batch_statistics)
        nodes = {tensor.grad_fn for tensor in tensors_in(output) if tensor.grad_fn is not None}
        for node in nodes:
            node.register_prehook(lambda _grads, value=value: self._announce(value))

    def _announce(self, value: Running) -> None:
        task = torch._C._current_graph_task_id()
        if task not in self._backward:
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self._backward.pop(task, None))
        self._backward[task] = value


class Scope(contextlib.ContextDecorator):
    """A block, or a decorated function, in which every call that reaches a model's layers obeys `running`.

    Each asyncio task has its own, and inherits those that were open when it was made; so does a thread that runs in a
    copied context (`asyncio.to_thread`), but no other. Blocks nest. A generator's block holds while the generator runs.

    Args:
        value: what the block gives to ``as``.
        running: called when the block is entered; says what holds inside. None: what holds outside.
    """

    def __init__(self, state: RunState, value: Any, running: Callable[[], Running] | None) -> None:
        self._state, self._value, self._running = state, value, running
        self._entered: list[Any] = []

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, decorated. Raises SelectionError for one that runs only after it has returned."""
        kinds = (inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction)
        if any(kind(function) for kind in kinds):
            raise SelectionError(
                f"{function.__qualname__} is a generator or a coroutine: its body runs after the decorated call has "
                "ended, so the selection would not hold there; write `with model.forgetting(...):` in its body"
            )
        return super().__call__(function)

    def _recreate_cm(self) -> Scope:
        # A decorated function may run in several threads at once.
        return Scope(self._state, self._value, self._running)

    def __enter__(self) -> Any:
        state = self._state
        if self._running is not None:
            running = self._running()
            # Nothing else can take a turn in this thread inside of compiled code and of a forward.
            if torch.compiler.is_compiling() or state._call.active:
                self._entered.append(state.enter(running))
            else:
                self._entered.append(state._open(running, sys._getframe(1)))
        return self._value

    def __exit__(self, *_error: Any) -> None:
        if self._running is not None:
            entered = self._entered.pop()
            if isinstance(entered, tuple):
                self._state.leave(entered)
            else:
                self._state._close(entered)


def _here() -> tuple[int, Any]:
    """The thread and the asyncio task that run."""
    asyncio = sys.modules.get("asyncio")
    task = None
    if asyncio is not None:
        # Where no event loop runs, this raises.
        with contextlib.suppress(RuntimeError):
            task = asyncio.current_task()
    return threading.get_ident(), task


def _generator_at(frame: FrameType | None) -> FrameType | None:
    """The generator or coroutine that opens a scope at `frame`, if others can run in its context while it waits."""
    while frame is not None:
        if frame.f_globals.get("__name__") != "contextlib":
            if not frame.f_code.co_flags & _GENERATOR:
                return None
            if frame.f_back is None or frame.f_back.f_globals.get("__name__") != "contextlib":
                break
            # contextlib makes a scope of this generator: its user is the one that opens it.
        frame = frame.f_back
    if frame is not None and frame.f_code.co_flags & inspect.CO_COROUTINE and _here()[1] is not None:
        return None
    return frame
