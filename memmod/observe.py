"""Watches one example run of a model: which module was called on what, and which functions consumed which tensor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from memmod.errors import ModelError


@dataclass(frozen=True)
class FunctionCall:
    """One call of a torch function; tensors are named by `id`, which is unique while the observation lives."""

    func: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    module: str

    @property
    def name(self) -> str:
        return getattr(self.func, "__name__", str(self.func))


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module: its tensor arguments and its tensor results."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass
class Observation:
    """What one example run did.

    `calls` holds the functions in order; `modules` the calls of each module by name; `output` what the model returned.
    """

    calls: list[FunctionCall] = field(default_factory=list)
    modules: dict[str, list[ModuleCall]] = field(default_factory=lambda: defaultdict(list))
    output: Any = None
    _alive: list[Tensor] = field(default_factory=list)

    def consumers(self, tensor: Tensor) -> list[FunctionCall]:
        """The calls that took `tensor` (views and in-place changes of it count)."""
        return [self.calls[i] for i in self._by_input().get(id(tensor), ())]

    def is_returned(self, tensor: Tensor) -> bool:
        """Whether `tensor` is part of what the model returned."""
        return any(part is tensor for part in tree_leaves(self.output))

    def producers(self, tensor_id: int) -> list[FunctionCall]:
        """The calls that returned the tensor of this id."""
        return [self.calls[i] for i in self._by_output().get(tensor_id, ())]

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
            self.observation._alive += inputs + outputs
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
            outputs = tuple(t for t in tree_leaves(out) if isinstance(t, Tensor))
            observation._alive += [*inputs, *outputs]
            observation.modules[name].append(ModuleCall(inputs, outputs))

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        with torch.no_grad(), recorder:
            observation.output = run_example(model, args, kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return observation


def run_example(model: nn.Module, args: tuple, kwargs: dict) -> Any:
    """``model(*args, **kwargs)``, with an error of memmod's own where the model rejects the example.

    Raises:
        ModelError: the model rejects the example input.
    """
    try:
        return model(*args, **kwargs)
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
        raise ModelError(
            f"{type(model).__name__} rejects the example input of shape {shapes}: {type(error).__name__}: {error}. "
            "Pass example_input, a batch of at least 2 samples as the model takes it"
        ) from error


def logits_of(output: Any) -> Tensor:
    """The first tensor ``[B, C]`` of what a model returned (a tensor, or a tuple, list or dict that holds it).

    Raises:
        ModelError: there is no tensor with two dimensions.
    """
    for part in tree_leaves(output):
        if isinstance(part, Tensor) and part.dim() == 2:
            return part
    shapes = [tuple(t.shape) for t in tree_leaves(output) if isinstance(t, Tensor)]
    raise ModelError(f"the model's output has no logits [B, num_classes]: it returned tensors of shapes {shapes}")


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
        differs = (before != after).reshape(batch, -1).any(dim=1).tolist()
        if differs != [sample == changed for sample in range(batch)]:
            return False
    return True


def weight_readers(observation: Observation, owners: dict[int, str]) -> Iterator[tuple[str, FunctionCall]]:
    """The calls that took a weight outside its own layer's forward: (layer name, call); `owners`: id(weight) → name."""
    for call in observation.calls:
        for tensor_id in call.inputs:
            owner = owners.get(tensor_id)
            if owner is not None and call.module != owner:
                yield owner, call


LAYER_FUNCTIONS = (F.linear, torch.conv2d, F.conv2d, F.multi_head_attention_forward)
