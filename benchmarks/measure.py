"""Checks rivals against the fp64 reference, then times them alternately with the plain layer."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.rivals import RIVALS, Layer, Rival, left_out
from memmod.ops import reference

# A measurement shorter than this is repeated inside one timing.
SHORTEST_SECONDS = 2e-3
PHASES = ("forward", "forward+backward")
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


@dataclass
class Result:
    """One rival on one case: times in seconds, ratios to plain by round, peak extra bytes, or why it is left out."""

    case: str
    group: str
    phase: str
    rival: str
    layout: str = ""
    ratios: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    extra_bytes: int = 0
    note: str = ""

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        first, _, third = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return first, third


class Runner:
    """A rival with its tensors, ready to be run in one phase."""

    def __init__(self, name: str, layer: Layer, phase: str) -> None:
        self.name, self.layer, self.backward = name, layer, phase != "forward"
        self.fn: Rival = RIVALS[name](layer)
        self.x = layer.x.detach().requires_grad_(self.backward)
        self.memory = layer.memory.detach().requires_grad_(self.backward)
        self.repeats = 1

    def once(self) -> tuple[Tensor, ...]:
        """(y,) or (y, dx, dmemory); plain has no dmemory."""
        if not self.backward:
            with torch.no_grad():
                return (self.fn(self.x, self.memory),)
        y = self.fn(self.x, self.memory)
        inputs = (self.x,) if self.name == "plain" else (self.x, self.memory)
        return (y, *torch.autograd.grad(y, inputs, self.layer.dy))

    def calibrate(self) -> None:
        """Warm up, and choose how many calls make one timing."""
        self.once()
        self.once()
        self.repeats = 1
        self.repeats = max(1, round(SHORTEST_SECONDS / max(self.time(), 1e-7)))

    def time(self) -> float:
        """Seconds of one call."""
        synchronise(self.x)
        start = time.perf_counter()
        for _ in range(self.repeats):
            self.once()
        synchronise(self.x)
        return (time.perf_counter() - start) / self.repeats


def synchronise(t: Tensor) -> None:
    if t.is_cuda:
        torch.cuda.synchronize(t.device)


def oracle(layer: Layer) -> tuple[tuple[Tensor, ...], tuple[float, ...]]:
    """(y, dx, dmemory) in fp64, and the largest magnitude that each one's sums of absolute values reach."""
    exact = layer.to(torch.float64)
    results = _reference(exact)
    positive = Layer(
        exact.case, exact.x.abs(), exact.weight.abs(), exact.bias.abs(), exact.memory, exact.index, exact.dy.abs()
    )
    return results, tuple(t.abs().max().item() for t in _reference(positive))


def _reference(layer: Layer) -> tuple[Tensor, ...]:
    x, memory = layer.x.detach().requires_grad_(), layer.memory.detach().requires_grad_()
    args = (x, layer.weight, layer.bias, memory, None, layer.index, "sigmoid", True, False)
    if layer.case.kernel:
        stride, padding = [layer.case.stride] * 2, [layer.case.kernel // 2] * 2
        y = reference.modulated_conv2d(*args, stride, padding, [1, 1], 1)[0]
    else:
        y = reference.modulated_linear(*args)[0]
    return (y.detach(), *torch.autograd.grad(y, (x, memory), layer.dy))


def bounds(layer: Layer, phase: str, expected: tuple[Tensor, ...], magnitudes: tuple[float, ...]) -> list[float]:
    """The error that each tensor may have: 2 × the eager form's in its worse layout + eps × the largest magnitude."""
    eps = torch.finfo(layer.x.dtype).eps
    layouts = [layer.to(memory_format) for memory_format in LAYOUTS.values()] if layer.case.kernel else [layer]
    runs = [Runner("eager", each, phase).once() for each in layouts]
    return [
        2 * max(_error(run[k], exact) for run in runs) + eps * magnitude
        for k, (exact, magnitude) in enumerate(zip(expected, magnitudes, strict=True))
    ]


def check(runner: Runner, expected: tuple[Tensor, ...], allowed: list[float]) -> None:
    """A rival's tensors are within their bounds of the oracle's.

    Raises:
        AssertionError: it is wrong, so it must not be timed.
    """
    for name, got, exact, bound in zip(("y", "dx", "dmemory"), runner.once(), expected, allowed, strict=False):
        error = _error(got, exact)
        assert error <= bound, f"{runner.name} is wrong on {runner.layer.case}: {name} off by {error:.2e} > {bound:.2e}"


def _error(got: Tensor, exact: Tensor) -> float:
    difference = (got.double() - exact).abs().max().item()
    return difference if difference == difference else float("inf")


def best_layout(name: str, layer: Layer, phase: str, trials: int = 3) -> tuple[str, Runner]:
    """The runner in the faster of NCHW and channels_last, by the least of a few timings."""
    if not layer.case.kernel:
        runner = Runner(name, layer, phase)
        runner.calibrate()
        return "", runner
    runners = {}
    for label, memory_format in LAYOUTS.items():
        runners[label] = Runner(name, layer.to(memory_format), phase)
        runners[label].calibrate()
    least = {label: min(runner.time() for _ in range(trials)) for label, runner in runners.items()}
    label = min(least, key=least.get)
    return label, runners[label]


def peak_bytes(runner: Runner) -> int:
    """The most memory that one call holds beyond what it started with."""
    if runner.x.is_cuda:
        before = torch.cuda.memory_allocated(runner.x.device)
        torch.cuda.reset_peak_memory_stats(runner.x.device)
        runner.once()
        return torch.cuda.max_memory_allocated(runner.x.device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        runner.once()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def compare(layer: Layer, phase: str, rivals: tuple[str, ...], rounds: int, run_rounds) -> list[Result]:
    """Check every rival, then time each alternately with plain.

    `run_rounds(one_round, rounds)` runs the rounds: pytest-benchmark's pedantic mode.
    """
    case = layer.case
    expected, magnitudes = oracle(layer)
    if phase == "forward":
        expected, magnitudes = expected[:1], magnitudes[:1]
    allowed = bounds(layer, phase, expected, magnitudes)
    results, runners = {}, {}
    for name in rivals:
        results[name] = Result(str(case), case.group, phase, name)
        reason = left_out(name, case)
        if reason is not None:
            results[name].note = reason
            continue
        results[name].layout, runners[name] = best_layout(name, layer, phase)
        if name != "plain":
            check(runners[name], expected, allowed)
        results[name].extra_bytes = peak_bytes(runners[name])

    order = [name for name in runners if name != "plain"]

    def one_round() -> None:
        for name in order:
            base = runners["plain"].time()
            seconds = runners[name].time()
            results["plain"].seconds.append(base)
            results[name].seconds.append(seconds)
            results[name].ratios.append(seconds / base)
        order.append(order.pop(0))

    run_rounds(one_round, rounds)
    # Plain against itself, for the noise of the machine.
    base = results["plain"].seconds
    results["plain"].ratios = [b / a for a, b in zip(base, base[1:], strict=False)] or [1.0]
    return list(results.values())
