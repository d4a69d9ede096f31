"""One layer's rivals: how each is run, and the check against the reference in fp64."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from benchmarks.baselines import Layer, left_out, make_rival, rivals_on
from benchmarks.gpu_variants import on_variant
from benchmarks.measure import LAYOUTS, Runner
from benchmarks.precision import eps
from benchmarks.roofline import Roof, Work, of_device, work
from memmod.ops.backends import reference
from memmod.ops.calls import ConvCall, LinearCall


class LayerRunner(Runner):
    """A rival of a layer in one phase."""

    def __init__(self, rival: str, layer: Layer, phase: str) -> None:
        self.rival, self.dy, self.backward = rival, layer.dy, phase != "forward"
        self.device = layer.x.device
        self.fn = make_rival(rival, layer)
        self.x = layer.x.detach().requires_grad_(self.backward)
        self.memory = layer.memory.detach().requires_grad_(self.backward)

    def once(self) -> tuple[Tensor, ...]:
        """(y,) or (y, dx, dmemory); plain has no dmemory."""
        with on_variant(self.rival):
            return self._once()

    def _once(self) -> tuple[Tensor, ...]:
        if not self.backward:
            with torch.no_grad():
                return (self.fn(self.x, self.memory),)
        y = self.fn(self.x, self.memory)
        inputs = (self.x,) if self.rival == "plain" else (self.x, self.memory)
        return (y, *torch.autograd.grad(y, inputs, self.dy))


class LayerComparison:
    """The rivals of one layer in one phase."""

    def __init__(self, layer: Layer, phase: str) -> None:
        self.layer, self.case, self.phase = layer, layer.case, phase
        self.group = f"{layer.case.group} {layer.case.dtype}"
        self.device = layer.x.device
        self.rivals: Sequence[str] = rivals_on(self.device.type)
        self.layouts = tuple(LAYOUTS) if layer.case.kernel else ("",)

    def left_out(self, rival: str) -> str | None:
        return left_out(rival, self.case)

    def layouts_of(self, rival: str) -> Sequence[str]:
        # In NCHW, and with groups, every variant is the library's.
        own = rival in ("memmod triton", "memmod cuda") and self.case.groups == 1
        return ("NHWC",) if self.case.kernel and own else self.layouts

    def work(self, rival: str) -> Work:
        return work(self.case, self.phase, gated=rival != "plain")

    @property
    def setting(self) -> object:
        """The library's, which says in what precision fp32 is multiplied on a GPU."""
        return torch.backends.cudnn.conv if self.case.kernel else torch.backends.cuda.matmul

    @cached_property
    def roof(self) -> Roof | None:
        return of_device(str(self.device), self.case.dtype, self.setting.fp32_precision == "tf32")

    def runner(self, rival: str, layout: str) -> LayerRunner:
        return LayerRunner(rival, self.layer.to(LAYOUTS[layout]) if layout else self.layer, self.phase)

    @cached_property
    def expected(self) -> list[tuple[str, Tensor, float]]:
        """(name, exact value, allowed error) of each tensor that a rival returns.

        Allowed is 2 × the eager form's error in its worse layout + eps × the largest magnitude that the tensor's sums
        of absolute values reach.
        """
        exact = _reference(self.layer.to(torch.float64), self.phase)
        magnitudes = [t.abs().max().item() for t in _reference(_positive(self.layer.to(torch.float64)), self.phase)]
        relative = eps(self.layer.x.dtype, self.device, self.setting)
        runs = [self.runner("eager", layout).once() for layout in self.layouts]
        return [
            (name, value, 2 * max(_error(run[k], value) for run in runs) + relative * magnitude)
            for k, (name, value, magnitude) in enumerate(zip(("y", "dx", "dmemory"), exact, magnitudes, strict=False))
        ]

    def check(self, rival: str, runner: LayerRunner) -> None:
        """A rival's tensors are within their bounds of the oracle's.

        Raises:
            AssertionError: it is wrong, so it must not be timed.
        """
        if rival == "plain":
            return
        for (name, exact, bound), got in zip(self.expected, runner.once(), strict=True):
            error = _error(got, exact)
            assert error <= bound, f"{rival} is wrong on {self.case}: {name} off by {error:.2e} > {bound:.2e}"


def _reference(layer: Layer, phase: str) -> tuple[Tensor, ...]:
    x, memory = layer.x.detach().requires_grad_(), layer.memory.detach().requires_grad_()
    args = (x, layer.weight, layer.bias, memory, None, layer.index, "sigmoid", True, False)
    if layer.case.kernel:
        stride, padding = [layer.case.stride] * 2, [layer.case.kernel // 2] * 2
        y = reference.modulated_conv2d(ConvCall(*args, stride, padding, [1, 1], layer.case.groups))[0]
    else:
        y = reference.modulated_linear(LinearCall(*args))[0]
    if phase == "forward":
        return (y.detach(),)
    return (y.detach(), *torch.autograd.grad(y, (x, memory), layer.dy))


def _positive(layer: Layer) -> Layer:
    x, weight, bias, dy = (t.abs() for t in (layer.x, layer.weight, layer.bias, layer.dy))
    return Layer(layer.case, x, weight, bias, layer.memory, layer.index, dy)


def _error(got: Tensor, exact: Tensor) -> float:
    difference = (got.double() - exact).abs().max().item()
    return difference if difference == difference else float("inf")
