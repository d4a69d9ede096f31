"""Finds squeeze-excite by what it does: layers on pooled input, whose result scales another tensor by channel."""

from __future__ import annotations

import math
from collections import defaultdict

from torch import Tensor, nn

from memmod.surgery.trace import FunctionCall, Observation

PRODUCTS = ("mul", "mul_", "multiply", "multiply_", "__mul__", "__rmul__", "__imul__")
# Functions that gather a map into one value per channel; matmul is pooling with attention weights.
POOLS = ("mean", "sum", "amax", "max", "std", "var", "var_mean", "std_mean", "matmul", "bmm", "einsum")


def squeeze_excite_layers(model: nn.Module, observation: Observation) -> set[str]:
    """Names of the linear and conv layers between a pooled map and a product with one factor per sample and channel.

    arXiv 1709.01507 and its kin (channel attention, split attention, global context). A gate there would act as a
    factor on a factor of the map, so these layers are left alone.
    """
    branches = _Branches(model, observation)
    found: set[str] = set()
    for call in observation.calls:
        if call.name in PRODUCTS and len(call.inputs) == 2:
            a, b = call.inputs
            found |= branches.layers_of(a, scaled=b) | branches.layers_of(b, scaled=a)
    return found


class _Branches:
    def __init__(self, model: nn.Module, observation: Observation) -> None:
        self.observation = observation
        self.layers = {n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.Conv1d))}
        # Innermost modules come last in named_modules(), and their calls end first.
        self.made_by: dict[int, list[tuple[str, tuple[Tensor, ...]]]] = defaultdict(list)
        for name, calls in observation.modules.items():
            for call in calls:
                for output in call.outputs:
                    self.made_by[id(output)].append((name, call.inputs))

    def layers_of(self, factor: int, scaled: int) -> set[str]:
        """The layers that made `factor` out of a pooled map, where it scales `scaled` by the channel; else none."""
        s, x = self.observation.tensors[factor], self.observation.tensors[scaled]
        channels = _channels_scaled(s, x)
        alike = s.shape == x.shape and s.dim() >= 3 and math.prod(s.shape[2:]) == 1
        if not channels and not alike:
            return set()
        layers: set[str] = set()
        pooled = False
        todo, seen = [factor], set()
        while todo:
            tensor_id = todo.pop()
            if tensor_id in seen:
                continue
            seen.add(tensor_id)
            maker = next(((n, inputs) for n, inputs in self.made_by[tensor_id] if n in self.layers), None)
            if maker is not None:
                name, inputs = maker
                if _places(inputs[0], self.observation.tensors[tensor_id]) == 1:
                    layers.add(name)
                    todo += map(id, inputs)
                continue
            calls = self.observation.producers(tensor_id)
            pools = [call for call in calls if _is_pool(call, self.observation, scaled if alike else None)]
            pooled |= bool(pools)
            if not pools:
                # A module whose functions were not seen (TorchScript, a custom autograd function) links its ends.
                unseen = [inputs for _, inputs in self.made_by[tensor_id]] if not calls else []
                # expand_as() and its kin take only the shape of their second tensor.
                taken = [call.inputs[:1] if call.name.endswith("_as") else call.inputs for call in calls]
                todo += [i for ids in taken for i in ids] + [id(t) for inputs in unseen for t in inputs]
        return layers if pooled else set()


def _channels_scaled(s: Tensor, x: Tensor) -> int:
    """How many factors per sample `s` has, where it scales whole channels of `x`; 0 where it does something else.

    Channels first, ``[B, C, 1, 1]`` on ``[B, C, H, W]``, or last, ``[B, 1, C]`` on ``[B, N, C]``; expanded views too.
    """
    if s.dim() != x.dim() or x.dim() < 3 or s.shape[0] != x.shape[0]:
        return 0
    sizes = [1 if stride == 0 else size for size, stride in zip(s.shape, s.stride(), strict=True)][1:]
    spread = [i for i, (own, other) in enumerate(zip(sizes, x.shape[1:], strict=True)) if own == 1 and other > 1]
    last = len(sizes) - 1
    first_place = min(spread, default=0)
    contiguous = spread == list(range(first_place, first_place + len(spread)))
    channels_first = contiguous and spread[-1:] == [last] and first_place > 0
    channels_last = contiguous and spread[-1:] == [last - 1] and all(size == 1 for size in sizes[:last])
    return math.prod(sizes) if spread and (channels_first or channels_last) and math.prod(sizes) > 1 else 0


def _places(taken: Tensor, made: Tensor) -> int:
    """Positions per sample that a layer ran on: 1 for a vector per sample, H·W for a map."""
    features = made.shape[1] if made.dim() == 4 and math.prod(made.shape[2:]) == 1 else made.shape[-1]
    batch = max(1, min(made.shape[0], taken.shape[0]))
    return made.numel() // max(1, batch * features)


def _is_pool(call: FunctionCall, observation: Observation, source: int | None) -> bool:
    """Whether a call gathers positions; `source`: the tensor it must take, where sizes cannot tell."""
    if call.name not in POOLS and "pool" not in call.name:
        return False
    if source is not None:
        return source in call.inputs
    made = max((observation.tensors[i].numel() for i in call.outputs), default=0)
    return any(observation.tensors[i].numel() > made for i in call.inputs)
