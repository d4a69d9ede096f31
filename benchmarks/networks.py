"""A whole network's rivals: the frozen network, plain or folded, with eager gates or without, and memmod's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.baselines import gate_rows, gated, random_index
from benchmarks.cases import CLASSES, DTYPES, NetworkCase
from memmod.model import modulate
from memmod.surgery.fold import foldable_pairs, folded_conv, what_is_left
from memmod.surgery.random_weights import randomise
from memmod.surgery.replace import replace_module
from memmod.surgery.trace import observe
from memmod.unlearning.objectives import masked_target
from memmod.zoo import create_model

SERVED_CLASS = 3


@dataclass
class Network:
    """What the rivals of one case share.

    Args:
        base: the frozen, unfolded network.
        memories: ``[CLASSES, K]`` by the name of the gated layer.
        dims: along which each of these layers' outputs has its units, 1 or -1.
        norms: the norm that folds into a layer, by the layer's name.
        index: ``[B]``, or ``[1]`` where one class serves the whole batch.
        forget: `index` as `ModulatedModel` takes it: a tensor, or an int for the whole batch.
        target: what the loss of a training step compares the softmax with.
    """

    case: NetworkCase
    base: nn.Module
    x: Tensor
    memories: dict[str, Tensor]
    dims: dict[str, int]
    norms: dict[str, str]
    index: Tensor
    forget: Tensor | int
    target: Tensor

    def to(self, target: torch.dtype | torch.memory_format) -> Network:
        """The same network in another dtype (memories keep theirs, but in fp64) or layout."""
        layout = isinstance(target, torch.memory_format)
        base = copy.deepcopy(self.base)
        base = base.to(memory_format=target) if layout else base.to(target)
        x = self.x.contiguous(memory_format=target) if layout else self.x.to(target)
        wider = target is torch.float64
        memories = {name: memory.double() if wider else memory for name, memory in self.memories.items()}
        return replace(self, base=base, x=x, memories=memories, target=self.target.double() if wider else self.target)


def make_network(case: NetworkCase, device: str, whole_batch: bool, seed: int = 0) -> Network:
    """A case with random weights, images, memories and selections."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, case.side, case.side)
    base = randomise(create_model(case.model, CLASSES, shape, seed=seed), seed).eval().requires_grad_(False)
    base = base.to(device, DTYPES[case.dtype])
    x = torch.randn(case.batch, *shape, generator=generator).to(device, DTYPES[case.dtype])
    per_sample = random_index(case.batch, generator)
    index = (torch.tensor([SERVED_CLASS]) if whole_batch else per_sample).to(device)
    wf = modulate(base, CLASSES, x[:2])
    memories = {
        name.removesuffix(".memory"): torch.randn(memory.shape, generator=generator).add(2).to(device)
        for name, memory in wf.named_memories()
    }
    layers = {name: wf.model.get_submodule(name) for name in memories}
    dims = {name: getattr(m, "dim", 1 if isinstance(m, nn.Conv2d) else -1) for name, m in layers.items()}
    norms = dict(foldable_pairs(base, observe(base, (x[:2],), {})))
    with torch.no_grad():
        target = masked_target(base(x).float(), index.expand(case.batch)[:, None])
    return Network(case, base, x, memories, dims, norms, index, SERVED_CLASS if whole_batch else index, target)


@dataclass
class Rival:
    """`call(x)` gives the logits; `leaves` are what a training step differentiates; `module` holds the parameters."""

    call: Callable[[Tensor], Tensor]
    leaves: tuple[Tensor, ...]
    module: nn.Module


class _Start(torch.autograd.Function):
    """Lets a frozen network's backward end here: the gradient is computed up to y and goes no further."""

    @staticmethod
    def forward(ctx, y: Tensor, token: Tensor) -> Tensor:
        # In place, so that nothing is copied and an in-place activation may follow.
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[None, Tensor]:
        return None, dy.new_zeros(1)


def _places(network: Network, folded: bool) -> dict[str, str]:
    """The module behind which each layer's gate sits."""
    return {name: name if folded else network.norms.get(name, name) for name in network.memories}


def _folded(network: Network) -> nn.Module:
    model = copy.deepcopy(network.base)
    for conv_name, norm_name in network.norms.items():
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        replace_module(model, conv, folded_conv(conv, norm))
        replace_module(model, norm, what_is_left(norm))
    return model


def _plain(network: Network, folded: bool) -> Rival:
    model = _folded(network) if folded else copy.deepcopy(network.base)
    token = torch.zeros(1, device=network.x.device, dtype=network.x.dtype, requires_grad=True)
    first = next(iter(_places(network, folded).values()))
    model.get_submodule(first).register_forward_hook(
        lambda _module, _args, y: _Start.apply(y, token) if torch.is_grad_enabled() else None
    )
    return Rival(model, (token,), model)


def _compiled(network: Network) -> Rival:
    """torch.compile of the frozen network; its backward ends at the bias of the first gated layer, or of its norm."""
    torch._dynamo.reset()
    model = copy.deepcopy(network.base)
    first = next(iter(_places(network, folded=False).values()))
    bias = model.get_submodule(first).bias.requires_grad_()
    return Rival(torch.compile(model, dynamic=False), (bias,), model)


def _eager(network: Network, folded: bool) -> Rival:
    model = _folded(network) if folded else copy.deepcopy(network.base)
    rows = gate_rows(network.index)
    leaves = []
    for name, place in _places(network, folded).items():
        memory = network.memories[name].clone().requires_grad_()
        model.get_submodule(place).register_forward_hook(
            lambda _module, _args, y, memory=memory, dim=network.dims[name]: gated(y, memory, rows, dim)
        )
        leaves.append(memory)
    return Rival(model, tuple(leaves), model)


def _memmod(network: Network) -> Rival:
    wf = modulate(network.base, CLASSES, network.x[:2])
    wf.load_memory_state({f"{name}.memory": memory for name, memory in network.memories.items()})
    return Rival(lambda x: wf(x, forget=network.forget), tuple(wf.memory_parameters()), wf)


NETWORK_RIVALS: dict[str, Callable[[Network], Rival]] = {
    "plain": lambda network: _plain(network, folded=False),
    "plain folded": lambda network: _plain(network, folded=True),
    "plain compiled": _compiled,
    "eager unfolded": lambda network: _eager(network, folded=False),
    "eager folded": lambda network: _eager(network, folded=True),
    "memmod": _memmod,
}
