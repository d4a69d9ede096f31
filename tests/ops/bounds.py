"""The error bound that every backend keeps, and the three evaluations it compares: op, plain PyTorch, oracle."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import memmod.ops.backends.reference as reference
from tests.ops.problems import Problem

Results = dict[str, Tensor]


def run_op(problem: Problem, needs: Sequence[str] | None = None) -> Results:
    """y and the gradients of `needs` (all that exist, if None) from the op and its own backward."""
    op = getattr(torch.ops.memmod, problem.op).default
    return _differentiate(lambda p: op(*p.args)[0], problem, needs)


def run_oracle(problem: Problem, needs: Sequence[str] | None = None) -> Results:
    """The same in fp64, from the reference's forward and plain autograd."""
    forward, exact = getattr(reference, problem.op), problem.map(lambda t: t.double())
    return _differentiate(lambda p: forward(p.call)[0], exact, needs, materialize_grads=True)


def run_plain(problem: Problem, needs: Sequence[str] | None = None) -> Results:
    """The same as a user of plain PyTorch would write it: in the problem's dtype, gates in the memory's."""
    return _differentiate(_plain, problem, needs, materialize_grads=True)


def magnitudes(problem: Problem, needs: Sequence[str] | None = None) -> dict[str, float]:
    """For each result the largest value that the oracle's sums of absolute values reach."""
    positive = problem.map(torch.abs)
    if problem.gate != "identity":
        positive = positive.replace(memory=problem.memory, input_memory=problem.input_memory)
    return {name: _largest(value) for name, value in run_oracle(positive, needs).items()}


class Measure(NamedTuple):
    """What a problem's results are measured by, whichever kernels computed them."""

    exact: Results
    """of the oracle"""
    plain: dict[str, float]
    """plain PyTorch's largest errors"""
    magnitudes: dict[str, float]
    dtypes: dict[str, torch.dtype]


# Tests of one case with several backends and instruction sets follow one another.
KEPT = 16
_kept: OrderedDict[tuple[str, tuple[str, ...] | None], Measure] = OrderedDict()


def measure(problem: Problem, needs: Sequence[str] | None = None) -> Measure:
    """The oracle's results and what else the bound needs; of a problem on the CPU computed once, by its numbers."""
    if problem.x.device.type != "cpu":
        # Settings of the device, such as TF32, decide what plain PyTorch gives.
        return _measure(problem, needs)
    key = digest(problem), None if needs is None else tuple(needs)
    if key in _kept:
        _kept.move_to_end(key)
    else:
        _kept[key] = _measure(problem, needs)
        if len(_kept) > KEPT:
            _kept.popitem(last=False)
    return _kept[key]


def _measure(problem: Problem, needs: Sequence[str] | None) -> Measure:
    naive, exact = run_plain(problem, needs), run_oracle(problem, needs)
    assert naive.keys() == exact.keys()
    plain = {name: _largest(naive[name].double() - exact[name]) for name in exact}
    return Measure(exact, plain, magnitudes(problem, needs), {name: t.dtype for name, t in naive.items()})


def digest(problem: Problem) -> str:
    """A hash of everything in a problem: options, and each tensor's type, shape, strides and numbers."""
    found = hashlib.sha256()
    for field in dataclasses.fields(problem):
        value = getattr(problem, field.name)
        if isinstance(value, Tensor):
            found.update(f"{field.name} {value.dtype} {tuple(value.shape)} {value.stride()};".encode())
            found.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy())
        else:
            found.update(f"{field.name} {value!r};".encode())
    return found.hexdigest()


def assert_within_bound(
    problems: Sequence[Problem],
    run: Callable[[Problem], Results] | None = None,
    needs: Sequence[str] | None = None,
) -> None:
    """Each result's error is at most 2x plain PyTorch's + eps x the largest magnitude, maxima over all problems."""
    run = run or partial(run_op, needs=needs)
    eps = torch.finfo(problems[0].x.dtype).eps
    error: dict[str, float] = {}
    plain: dict[str, float] = {}
    scale: dict[str, float] = {}
    for problem in problems:
        got, known = run(problem), measure(problem, needs)
        assert got.keys() == known.exact.keys()
        for name, exact in known.exact.items():
            assert got[name].shape == exact.shape, name
            assert got[name].dtype == known.dtypes[name], name
            assert not got[name].isnan().any(), f"{name} has NaN"
            error[name] = max(error.get(name, 0.0), _largest(got[name].double() - exact))
            plain[name] = max(plain.get(name, 0.0), known.plain[name])
            scale[name] = max(scale.get(name, 0.0), known.magnitudes[name])
    for name in error:
        bound = 2 * plain[name] + eps * scale[name]
        assert error[name] <= bound, f"{name}: error {error[name]:.3e}, plain {plain[name]:.3e}, bound {bound:.3e}"


def _largest(t: Tensor) -> float:
    return t.abs().max().item() if t.numel() else 0.0


def _differentiate(
    forward: Callable[[Problem], Tensor], problem: Problem, needs: Sequence[str] | None = None, **options: bool
) -> Results:
    names = [n for n in problem.learnable if getattr(problem, n) is not None and (needs is None or n in needs)]
    leaves = {n: getattr(problem, n).detach().requires_grad_() for n in names}
    y = forward(problem.replace(**leaves))
    results = {"y": y.detach()}
    if names:
        gradients = torch.autograd.grad(y, list(leaves.values()), problem.dy, **options)
        results.update({f"d{name}": gradient for name, gradient in zip(names, gradients, strict=True)})
    return results


def naive_gates(memory: Tensor, index: Tensor, gate: str, rows: int) -> Tensor:
    """One row of multipliers per row of x, sample by sample and class by class."""
    meaning = {"sigmoid": torch.sigmoid, "identity": lambda a: a, "hard": lambda a: (a > 0).to(a.dtype)}[gate]
    per_sample = []
    for row in index.tolist() if index.dim() == 2 else index.unsqueeze(1).tolist():
        s = memory.new_ones(memory.shape[1])
        for c in sorted(set(row) - {-1}):
            s = s * meaning(memory[c])
        per_sample.append(s)
    if not per_sample:
        return memory.new_ones(0, memory.shape[1])
    return torch.stack(per_sample).repeat_interleave(rows // index.shape[0], dim=0)


def _plain(p: Problem) -> Tensor:
    rows, dims = p.x.shape[0], p.x.dim()

    def gated(t: Tensor, memory: Tensor | None, dim: int) -> Tensor:
        if memory is None:
            return t
        shape = [1] * dims
        shape[0], shape[dim] = rows, memory.shape[1]
        return (t * naive_gates(memory, p.index, p.gate, rows).view(shape)).to(t.dtype)

    if p.op == "modulate_output":
        return gated(p.x, p.memory, p.dim)
    inner = p.bias if p.gate_bias else None
    if p.op == "modulated_linear":
        y = gated(F.linear(gated(p.x, p.input_memory, -1), p.weight, inner), p.memory, -1)
        return y if p.gate_bias or p.bias is None else y + p.bias
    x = gated(p.x, p.input_memory, 1)
    y = gated(F.conv2d(x, p.weight, inner, p.stride, p.padding, p.dilation, p.groups), p.memory, 1)
    return y if p.gate_bias or p.bias is None else y + p.bias.view(-1, 1, 1)
