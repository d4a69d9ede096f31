"""Tells by one backward pass which layers' gates change a model's output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from memmod.errors import MemmodError
from memmod.nn.modulated import Modulated
from memmod.surgery.example import Example

if TYPE_CHECKING:
    from memmod.surgery.verify import Checked, Probe

# Of two samples the second is gated.
SELECTION = [-1, 0]
# σ(4) = 0.98, and there the gate changes by 0.018 of what the memory does.
NEARLY_OPEN = 4.0
SLOPE = {"sigmoid": 0.018, "identity": 1.0, "hard": 1.0}
# They make new tensors of the shape of those that they take.
LIKE = ("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like")


def influential(wf: Checked, example: Example) -> set[str]:
    """The layers whose gates certainly change the output ``[B, ...]`` of their own sample; others may or may not.

    A layer's gate changes the layer's own output (its forward without the gate, on the same input, gives other values
    for the gated sample and the same bits for the other one), and the derivative of the output by the gate is not
    zero. The derivative is believed where autograd follows all that the model computes: a value that leaves the graph
    (``detach``, ``no_grad``) or a backward that somebody wrote may claim what the forward does not do.
    """
    watch = _Watch(wf.probe)
    acting = wf.probe.memories
    nearly_open = {
        name: [None if memory is None else _nearly_open(memory, layer.gate) for memory in acting[name]]
        for layer, name in wf.probe.layers.items()
    }
    memories = [memory for pair in nearly_open.values() for memory in pair if memory is not None]
    handles = [layer.register_forward_hook(watch.compare, with_kwargs=True) for layer in wf.probe.layers]
    wf.probe.memories = nearly_open
    try:
        with torch.enable_grad(), watch:
            output = wf.output(example.with_samples([0, 1]), SELECTION)[1]
        if watch.left_the_graph or _has_own_backward(output):
            return set()
        gradients = _gradients(output, memories)
    except (MemmodError, RuntimeError):
        # It runs without gradients, as was seen before.
        return set()
    finally:
        for handle in handles:
            handle.remove()
        wf.probe.memories = acting
    by_memory = dict(zip(map(id, memories), gradients, strict=True))
    gates = {name: layer.gate for layer, name in wf.probe.layers.items()}
    # What a smaller change of the gates changes may be lost in rounding.
    least = torch.finfo(output.dtype).eps * output.detach().abs().max().float()
    return {
        name
        for name, pair in nearly_open.items()
        if name in watch.changed and any(by_memory[id(m)] > least * SLOPE[gates[name]] for m in pair if m is not None)
    }


def _nearly_open(memory: Tensor, gate: str) -> Tensor:
    """Memory entries whose gates are a little below 1: many closed by half would leave nothing of the deepest."""
    value = 1 - 0.02 * memory.abs() if gate == "identity" else NEARLY_OPEN + memory / 2
    return value.requires_grad_(True)


def _gradients(output: Tensor, memories: list[Tensor]) -> list[Tensor]:
    """The sums of absolute derivatives of a random projection of the output by each memory."""
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output.device, output.dtype)
    with torch.enable_grad():
        projection = (output * weights).sum()
    found = torch.autograd.grad(projection, memories, allow_unused=True)
    return [torch.zeros(()) if g is None else g.abs().sum().float().nan_to_num(0.0).cpu() for g in found]


class _Watch(TorchFunctionMode):
    """Compares each gated layer's output with that of the same input without its gate; notes what leaves the graph."""

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self.probe = probe
        self.changed: set[str] = set()
        self.left_the_graph = False
        self._comparing = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not self._comparing and not self.left_the_graph and getattr(func, "__name__", "") not in LIKE:
            made = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()]
            if any(not t.requires_grad for t in made):
                taken = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
                self.left_the_graph = any(t.requires_grad for t in taken)
        return out

    def compare(self, layer: Modulated, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """A forward hook of gated layers; in other threads, and for calls of the layer's own, it does nothing."""
        if self._comparing or layer.state is None or layer.state.probe is not self.probe:
            return
        if not isinstance(output, Tensor) or output.shape[0] % len(SELECTION):
            return
        before = self.probe.everywhere
        self._comparing = True
        try:
            self.probe.everywhere = before.new_full((len(SELECTION),), -1)
            with torch.no_grad():
                plain = layer(*args, **kwargs)
                same = [torch.equal(a, b) for a, b in zip(_by_sample(output), _by_sample(plain), strict=True)]
        finally:
            self._comparing = False
            self.probe.everywhere = before
        if same == [chosen == -1 for chosen in SELECTION]:
            self.changed.add(self.probe.layers[layer])


def _by_sample(output: Tensor) -> Tensor:
    return output.unflatten(0, (len(SELECTION), -1))


def _has_own_backward(output: Tensor) -> bool:
    """Whether a backward is involved that is not torch's or memmod's, or that passes gradients through rounding."""
    todo, seen = [output.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        own = getattr(type(node), "_forward_cls", None)
        if "FakeQuantize" in type(node).__name__ or (own is not None and not own.__module__.startswith("memmod.")):
            return True
        todo += [next_node for next_node, _ in node.next_functions]
    return False
