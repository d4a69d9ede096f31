"""The ways to compute a layer whose units are gated by sample, each as a function of (x, memory)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import CLASSES, DTYPES, Case
from benchmarks.gpu_variants import VARIANTS, why_not
from memmod import functional

Rival = Callable[[Tensor, Tensor], Tensor]

# Per-class weights gathered by sample; larger ones are reported as left out.
WEIGHTS_CAP_BYTES = 1 << 30


@dataclass
class Layer:
    """The tensors of one case: x, frozen weight and bias, memory ``[C, O]``, index ``[B]``, the gradient dy of y."""

    case: Case
    x: Tensor
    weight: Tensor
    bias: Tensor
    memory: Tensor
    index: Tensor
    dy: Tensor

    def to(self, *args) -> Layer:
        """The same layer with its floating tensors converted (memory format or dtype)."""
        floats = {k: getattr(self, k) for k in ("x", "weight", "bias", "memory", "dy")}
        return Layer(self.case, index=self.index, **{k: _convert(t, *args) for k, t in floats.items()})


def _convert(t: Tensor, target: torch.dtype | torch.memory_format) -> Tensor:
    if isinstance(target, torch.memory_format):
        return t.contiguous(memory_format=target) if t.dim() == 4 else t
    return t.to(target)


def random_index(batch: int, generator: torch.Generator) -> Tensor:
    """A class for each sample; a tenth of the samples selects nothing (-1)."""
    index = torch.randint(CLASSES, (batch,), generator=generator)
    index[torch.rand(batch, generator=generator) < 0.1] = -1
    return index


def make_layer(case: Case, device: str, seed: int = 0) -> Layer:
    """Random tensors for a case; the memory is fp32."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, dtype: torch.dtype = DTYPES[case.dtype]) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    weight = draw(*case.weight_shape)
    weight = weight / weight[0].numel() ** 0.5
    index = random_index(case.batch, generator)
    x, bias = draw(*case.x_shape), draw(case.outputs)
    memory = draw(CLASSES, case.outputs, dtype=torch.float32)
    y_shape = (*case.x_shape[:-1], case.outputs)
    if case.kernel:
        y_shape = tuple(_plain(case, x, weight, bias).shape)
    return Layer(case, x, weight, bias, memory, index.to(device), draw(*y_shape))


def _plain(case: Case, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if case.kernel:
        return F.conv2d(x, weight, bias, stride=case.stride, padding=case.kernel // 2, groups=case.groups)
    return F.linear(x, weight, bias)


def gate_rows(index: Tensor) -> Tensor:
    """The rows of a table of gates whose last row, of ones, stands for -1."""
    return index.remainder(CLASSES + 1)


def gates(memory: Tensor, rows: Tensor) -> Tensor:
    """Gathered gates ``[B, O]``. Of the ways to write it in PyTorch, the fastest for forward and backward."""
    return F.embedding(rows, torch.cat([memory.sigmoid(), memory.new_ones(1, memory.shape[1])]))


def gated(y: Tensor, memory: Tensor, rows: Tensor, dim: int) -> Tensor:
    """y ``[k·B, …]``, k entries a sample in a row, with O units along `dim` (1 or -1), times its samples' gates."""
    s = gates(memory, rows).to(y.dtype)
    if y.shape[0] != s.shape[0]:
        s = s.repeat_interleave(y.shape[0] // s.shape[0], 0)
    shape = [y.shape[0], *(1,) * (y.dim() - 1)]
    shape[dim] = s.shape[1]
    return y * s.view(shape)


def _eager(layer: Layer) -> Rival:
    case, weight, bias, rows = layer.case, layer.weight, layer.bias, gate_rows(layer.index)

    def run(x: Tensor, memory: Tensor) -> Tensor:
        return gated(_plain(case, x, weight, bias), memory, rows, 1 if case.kernel else -1)

    return run


def _materialised(layer: Layer) -> Rival:
    case, weight, bias, rows = layer.case, layer.weight, layer.bias, gate_rows(layer.index)

    def run(x: Tensor, memory: Tensor) -> Tensor:
        table = torch.cat([memory.sigmoid(), memory.new_ones(1, memory.shape[1])])
        classes = table.view(*table.shape, *(1,) * (weight.dim() - 1)).to(weight.dtype) * weight
        chosen, biases = classes[rows], (table.to(bias.dtype) * bias)[rows]
        if case.kernel:
            y = F.conv2d(
                x.reshape(1, -1, *x.shape[2:]),
                chosen.flatten(0, 1),
                biases.flatten(),
                stride=case.stride,
                padding=case.kernel // 2,
                groups=case.batch * case.groups,
            )
            return y.view(case.batch, case.outputs, *y.shape[2:])
        flat = x.view(case.batch, -1, case.inputs)
        return torch.baddbmm(biases[:, None], flat, chosen.transpose(1, 2)).view(*x.shape[:-1], case.outputs)

    return run


def _vmap(layer: Layer) -> Rival:
    case, weight, bias, rows = layer.case, layer.weight, layer.bias, gate_rows(layer.index)

    def one(x: Tensor, s: Tensor) -> Tensor:
        s = s.to(weight.dtype)
        w = weight * s.view(-1, *(1,) * (weight.dim() - 1))
        return _plain(case, x.unsqueeze(0), w, bias * s).squeeze(0)

    many = torch.func.vmap(one)
    return lambda x, memory: many(x, gates(memory, rows))


def _memmod(layer: Layer) -> Rival:
    case, weight, bias, index = layer.case, layer.weight, layer.bias, layer.index
    if case.kernel:
        return lambda x, memory: functional.modulated_conv2d(
            x, weight, bias, memory, index, stride=case.stride, padding=case.kernel // 2, groups=case.groups
        )
    return lambda x, memory: functional.modulated_linear(x, weight, bias, memory, index)


def plain(layer: Layer) -> Rival:
    """The same layer without modulation."""
    return lambda x, memory: _plain(layer.case, x, layer.weight, layer.bias)


def compiled(layer: Layer) -> Rival:
    """torch.compile of the eager form."""
    return torch.compile(_eager(layer), dynamic=False)


RIVALS: dict[str, Callable[[Layer], Rival]] = {
    "plain": plain,
    "eager": _eager,
    "compile": compiled,
    "materialised": _materialised,
    "vmap": _vmap,
    "memmod": _memmod,
}


def rivals_on(device: str) -> Sequence[str]:
    """The rivals' names on a type of device."""
    return ("plain", "eager", "compile", "memmod", *VARIANTS) if device == "cuda" else tuple(RIVALS)


def make_rival(name: str, layer: Layer) -> Rival:
    """A rival as a function of (x, memory), to be called inside `on_variant(name)`."""
    return RIVALS["memmod" if name in VARIANTS else name](layer)


def left_out(name: str, case: Case) -> str | None:
    """Why a rival is not measured on a case, or None."""
    if name in VARIANTS:
        return why_not(name)
    if name not in ("materialised", "vmap"):
        return None
    count = case.batch
    for size in case.weight_shape:
        count *= size
    if 4 * count > WEIGHTS_CAP_BYTES:
        return f"its weights by sample take {4 * count / 2**30:.1f} GiB (cap {WEIGHTS_CAP_BYTES >> 30} GiB)"
    return None
