"""Watches one example run of a model: which module was called on what, and which functions consumed which tensor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from memmod.errors import ModelError
from memmod.outputs import tensors_in
from memmod.surgery.seeded import fixed_draws


@dataclass(frozen=True)
class FunctionCall:
    """One call of a torch function; tensors are named by `id`, which is unique while the observation lives."""

    func: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    module: str

    @property
    def name(self) -> str:
        """The function's name; an operator's without its overload ("linear" for aten.linear.default)."""
        return getattr(self.func, "__name__", str(self.func)).partition(".")[0]


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module: its tensor arguments and its tensor results."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass
class Observation:
    """What one example run did.

    `calls` holds the functions in order; `modules` the calls of each module by name; `output` what the model returned;
    `tensors` every tensor seen, by id; `is_random` whether random numbers were drawn.
    """

    calls: list[FunctionCall] = field(default_factory=list)
    modules: dict[str, list[ModuleCall]] = field(default_factory=lambda: defaultdict(list))
    output: Any = None
    tensors: dict[int, Tensor] = field(default_factory=dict)
    is_random: bool = False

    def consumers(self, tensor: Tensor) -> list[FunctionCall]:
        """The calls that took `tensor` (views and in-place changes of it count)."""
        return [self.calls[i] for i in self._by_input().get(id(tensor), ())]

    def is_returned(self, tensor: Tensor) -> bool:
        """Whether `tensor` is part of what the model returned."""
        return any(part is tensor for part in tensors_in(self.output))

    def producers(self, tensor_id: int) -> list[FunctionCall]:
        """The calls that returned the tensor of this id."""
        return [self.calls[i] for i in self._by_output().get(tensor_id, ())]

    def reached_from(self, tensor_ids: Iterable[int]) -> set[int]:
        """Ids of the tensors that were computed from these, and of these."""
        reached = set(tensor_ids)
        for call in self.calls:
            if reached.intersection(call.inputs):
                # What returns nothing wrote to its first argument (x[i] = y).
                reached.update(call.outputs or call.inputs[:1])
        return reached

    def keep(self, tensors: Iterable[Tensor]) -> None:
        """Hold tensors alive, so that their ids stay theirs."""
        self.tensors.update((id(t), t) for t in tensors)

    def _by_input(self) -> dict[int, list[int]]:
        return self._table("_inputs", lambda call: call.inputs)

    def _by_output(self) -> dict[int, list[int]]:
        return self._table("_outputs", lambda call: call.outputs)

    def _table(self, attribute, ids) -> dict[int, list[int]]:
        table = self.__dict__.get(attribute)
        if table is None:
            table = defaultdict(list)
            for position, call in enumerate(self.calls):
                for tensor_id in set(ids(call)):
                    table[tensor_id].append(position)
            self.__dict__[attribute] = table
        return table


class _Recorder(TorchFunctionMode):
    def __init__(self, observation: Observation) -> None:
        super().__init__()
        self.observation = observation
        self.stack: list[str] = [""]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        # A call that returns no tensor reads metadata (x.shape), unless it returns nothing: then it wrote (x[i] = y).
        if outputs or out is None:
            inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            self.observation.keep(inputs + outputs)
            self.observation.calls.append(
                FunctionCall(func, tuple(map(id, inputs)), tuple(map(id, outputs)), self.stack[-1])
            )
        return out


def observe(model: nn.Module, args: tuple, kwargs: dict) -> Observation:
    """Run ``model(*args, **kwargs)`` once without gradients and record it.

    Raises:
        ModelError: the model rejects the example input.
    """
    observation = Observation()
    recorder = _Recorder(observation)
    handles = []
    for name, module in model.named_modules():

        def enter(_module, _args, name=name):
            recorder.stack.append(name)

        def leave(_module, args, kwargs, out, name=name):
            recorder.stack.pop()
            inputs = tuple(t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
            outputs = tuple(tensors_in(out))
            observation.keep((*inputs, *outputs))
            observation.modules[name].append(ModuleCall(inputs, outputs))

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        with torch.no_grad(), fixed_draws(_devices_of(model, args, kwargs)) as draws, recorder:
            observation.output = _run(model, args, kwargs)
        observation.keep(tensors_in(observation.output))
        observation.is_random = draws.taken
    finally:
        for handle in handles:
            handle.remove()
    return observation


def run_example(model: nn.Module, args: tuple, kwargs: dict) -> Any:
    """``model(*args, **kwargs)`` with fixed random draws, and an error of memmod's own where it rejects the example.

    Raises:
        ModelError: the model rejects the example input.
    """
    with fixed_draws(_devices_of(model, args, kwargs)):
        return _run(model, args, kwargs)


def _devices_of(model: nn.Module, args: tuple, kwargs: dict) -> list[Tensor]:
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    return [*tensors, *(p for p in (next(model.parameters(), None),) if p is not None)]


def _run(model: nn.Module, args: tuple, kwargs: dict) -> Any:
    try:
        return model(*args, **kwargs)
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
        raise ModelError(
            f"{type(model).__name__} rejects the example input of shape {shapes}: {type(error).__name__}: {error}. "
            "Pass example_input, a batch of at least 2 samples as the model takes it"
        ) from error


def same_output(now: Any, before: Any, tolerance: float) -> bool:
    """Whether two outputs of a model agree, up to `tolerance` × the magnitude of each tensor."""
    for after, expected in zip(tensors_in(now), tensors_in(before), strict=True):
        if after.is_floating_point() and after.numel():
            scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
            if not (after - expected).abs().max() <= tolerance * scale:
                return False
    return True


def rows_are_samples(first: list[ModuleCall], second: list[ModuleCall], batch: int, changed: int) -> bool:
    """Whether a layer's rows are samples, sample-major.

    `first` and `second` are its calls in two runs that differ in sample `changed` alone: exactly that sample's rows of
    the output must differ.
    """
    if len(first) != len(second):
        return False
    for a, b in zip(first, second, strict=True):
        if len(a.outputs) != 1 or len(b.outputs) != 1:
            return False
        before, after = a.outputs[0], b.outputs[0]
        if before.shape != after.shape or before.dim() == 0 or before.shape[0] == 0 or before.shape[0] % batch:
            return False
        # NaN differs from itself.
        differs = (before != after) & ~((before != before) & (after != after))
        differs = differs.reshape(batch, -1).any(dim=1).tolist()
        if differs != [sample == changed for sample in range(batch)]:
            return False
    return True


def stays_the_same(first: list[ModuleCall], second: list[ModuleCall]) -> bool:
    """Whether a layer gave the same outputs in two runs."""
    pairs = [(a.outputs, b.outputs) for a, b in zip(first, second, strict=False)]
    return len(first) == len(second) and all(all(map(torch.equal, a, b)) for a, b in pairs)


def weight_readers(observation: Observation, owners: dict[int, list[str]]) -> Iterator[tuple[str, FunctionCall]]:
    """(layer name, call) of the calls that took a weight outside the layers it belongs to.

    Args:
        owners: id of the weight → names of its layers.
    """
    for call in observation.calls:
        for tensor_id in call.inputs:
            names = owners.get(tensor_id, ())
            if call.module not in names:
                yield from ((name, call) for name in names)
