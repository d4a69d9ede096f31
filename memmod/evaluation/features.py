"""What a network computes on the way to its logits: the outputs of its blocks, and the input of its head."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from memmod.compiled import is_compiled
from memmod.errors import ModelError
from memmod.evaluation.accuracy import BATCH, batches
from memmod.outputs import logits_of, tensors_in
from memmod.surgery.config import ModulateConfig
from memmod.surgery.example import Example
from memmod.surgery.heads import choose_output, find_heads
from memmod.surgery.trace import observe

if TYPE_CHECKING:
    from memmod.data import Split

PENULTIMATE = "penultimate"

# Parts whose own outputs are blocks, and parts whose children are, by the names that the zoo and torchvision give them.
# timm's networks list theirs.
POINTS = re.compile(r"(stem|layer\d+|stage\d+)$")
CONTAINERS = ("blocks", "stages", "layers", "features")
POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def unwrapped(network: nn.Module, x: Tensor) -> nn.Module:
    """The network inside of wrappers that hand it x ``[B, ...]`` as it is and only change its logits; else itself.

    A wrapper is a module one child of which takes the very input and returns a tensor of the output's shape.
    """
    while True:
        if is_compiled(network):
            network = network._orig_mod
            continue
        inner = None if hasattr(type(network), "get_classifier") else _wrapped(network, x)
        if inner is None:
            return network
        network = inner


def _wrapped(network: nn.Module, x: Tensor) -> nn.Module | None:
    found: list[tuple[nn.Module, Any]] = []
    x = x.to(_device(network))

    def see(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if len(args) == 1 and args[0] is x:
            found.append((module, output))

    handles = [child.register_forward_hook(see) for child in network.children()]
    try:
        output = _run(network, x)
    finally:
        for handle in handles:
            handle.remove()
    same = [m for m, o in found if isinstance(o, Tensor) and isinstance(output, Tensor) and o.shape == output.shape]
    return same[0] if len(same) == 1 else None


def feature_points(network: nn.Module, x: Tensor) -> tuple[str, ...]:
    """Names of the modules whose outputs are the blocks of a network, in the order they run, then "penultimate".

    timm's `feature_info` where the network has it; else its stem, layers, blocks and stages by their names: of a plain
    stack of layers what stands in front of each pooling. A network without blocks has "penultimate" alone, the input
    of its classifier head. Names are those inside of the network that a wrapper holds (`unwrapped`).

    Args:
        x: a batch ``[B, ...]``, B ≥ 2.
    """
    network = unwrapped(network, x)
    ran = modules_that_run(network, x)
    head = head_name(network, x)
    names = dict.fromkeys(_listed_blocks(network) or _named_blocks(network))
    blocks = [name for name in dict.fromkeys(ran) if name in names and not _overlap(name, head)]
    return (*blocks, PENULTIMATE)


def modules_that_run(network: nn.Module, x: Tensor) -> list[str]:
    """The names of a network's modules in the order in which they finish, for a batch ``[B, ...]``; one that runs twice
    stands there twice."""
    ran: list[str] = []
    with _hooked({name: _noting(ran, name) for name, _ in network.named_modules() if name}, network):
        _run(network, x)
    return ran


def head_name(network: nn.Module, x: Tensor) -> str:
    """The name of the linear or conv layer of an unwrapped network that makes the logits: the first of its head's.

    Args:
        x: a batch ``[B, ...]``, B ≥ 2.

    Raises:
        ModelError: there is none that is certain.
    """
    with _in_eval_mode(network):
        example = Example.of(x.to(_device(network)))
        observation = observe(network, example.args, {})
        config = choose_output(network, observation, example, None, ModulateConfig())
        heads = find_heads(network, observation, logits_of(observation.output, config.logits))
    called = [name for name in heads if name in observation.modules]
    if not called:
        raise ModelError(
            f"{type(network).__name__} has no classifier head that memmod can find: give it a get_classifier() that "
            "returns the layer"
        )
    return called[0]


def features(
    network: nn.Module,
    split: Split,
    points: Sequence[str] | None = None,
    batch_size: int = BATCH,
    device: torch.device | str | None = None,
    indices: Tensor | None = None,
) -> dict[str, Tensor]:
    """Features ``[N, D]``, fp32 on the CPU, of a split's images at each point.

    Feature maps ``[B, C, H, W]`` (``[B, H, W, C]`` in networks that keep channels last) are averaged over positions; of
    tokens ``[B, T, D]`` the class token is taken, the first, where the network has one, else their mean.

    Args:
        points: names of modules and "penultimate"; default: `feature_points`.
        device: where the network runs; default: where it is. It is not moved: the images are.
        indices: int64 ``[N]``, which images; default: all.

    Raises:
        ModelError: a point that is no module of the network or does not run.
    """
    device = _device(network) if device is None else device
    example = split.batch(torch.arange(min(2, len(split)))).to(device)
    network = unwrapped(network, example)
    points = feature_points(network, example) if points is None else tuple(points)
    modules = dict(network.named_modules())
    unknown = [point for point in points if point != PENULTIMATE and point not in modules]
    if unknown:
        raise ModelError(f"{type(network).__name__} has no module {unknown[0]!r}: name some of feature_points()")
    parts: dict[str, list[Tensor]] = {point: [] for point in points}
    last: dict[str, Tensor] = {}
    pool = _Pooling(network)
    hooks = {point: _keeping(last, point, pool) for point in points if point != PENULTIMATE}
    head = modules[head_name(network, example)] if PENULTIMATE in points else None
    with _hooked(hooks, network), _hooked_input(head, last, pool):
        for x, _ in batches(split, batch_size, device, indices):
            last.clear()
            _run(network, x)
            for point in points:
                if point not in last:
                    raise ModelError(f"the module {point!r} does not run in {type(network).__name__}: name another")
                parts[point].append(last[point].cpu())
    return {point: torch.cat(found) for point, found in parts.items()}


class _Pooling:
    """A feature per sample, of whatever a module returned."""

    def __init__(self, network: nn.Module) -> None:
        token = [getattr(network, name, None) for name in ("cls_token", "class_token")]
        self.class_token = any(isinstance(t, Tensor) for t in token)
        self.channels_last = getattr(network, "output_fmt", None) == "NHWC"

    def __call__(self, output: Any) -> Tensor:
        # Taken at once: what follows may write into the tensor.
        y = next(iter(tensors_in(output))).detach().float()
        if y.dim() == 4:
            square = y.shape[1] == y.shape[2] != y.shape[3]
            return y.mean((1, 2) if self.channels_last or square else (2, 3))
        if y.dim() == 3:
            return y[:, 0].clone() if self.class_token else y.mean(1)
        return y.flatten(2).mean(2) if y.dim() > 4 else y.reshape(len(y), -1).clone()


def _listed_blocks(network: nn.Module) -> list[str]:
    info = getattr(network, "feature_info", None)
    return [entry["module"] for entry in info] if isinstance(info, list) else []


def _named_blocks(network: nn.Module, prefix: str = "") -> list[str]:
    found = []
    for name, child in network.named_children():
        path = f"{prefix}{name}"
        if POINTS.match(name):
            found.append(path)
        elif isinstance(child, (nn.Sequential, nn.ModuleList)) and (name in CONTAINERS or _is_stack(child)):
            found += _blocks_in(child, path)
        else:
            found += _named_blocks(child, f"{path}.")
    return found


def _is_stack(container: nn.Module) -> bool:
    """Whether it holds blocks, whatever its name: at least three parts with parts of their own."""
    return sum(next(child.children(), None) is not None for child in container.children()) >= 3


def _blocks_in(container: nn.Module, path: str) -> list[str]:
    children = list(container.named_children())
    before_pooling = {
        before for (before, _), (_, after) in zip(children, children[1:], strict=False) if isinstance(after, POOLING)
    }
    found = [n for n, child in children if n in before_pooling or next(child.children(), None) is not None]
    return [f"{path}.{n}" for n in found] or [path]


def _overlap(name: str, other: str) -> bool:
    return f"{name}.".startswith(f"{other}.") or f"{other}.".startswith(f"{name}.")


def _noting(ran: list[str], name: str) -> Any:
    return lambda _module, _args, _output: ran.append(name)


def _keeping(last: dict[str, Tensor], point: str, pool: _Pooling) -> Any:
    return lambda _module, _args, output: last.__setitem__(point, pool(output))


@contextmanager
def _hooked(hooks: dict[str, Any], network: nn.Module) -> Iterator[None]:
    modules = dict(network.named_modules())
    handles = [modules[name].register_forward_hook(hook) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _hooked_input(head: nn.Module | None, last: dict[str, Tensor], pool: _Pooling) -> Iterator[None]:
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda _module, args: last.__setitem__(PENULTIMATE, pool(args[0])))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _in_eval_mode(network: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _run(network: nn.Module, x: Tensor) -> Any:
    with torch.no_grad(), _in_eval_mode(network):
        return network(x.to(_device(network)))


def _device(network: nn.Module) -> torch.device:
    return next((p.device for p in network.parameters()), torch.device("cpu"))
