"""Times the rivals of one comparison, alternately with plain, and counts the memory that they take."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import clock
from benchmarks.roofline import Roof, Work, floor_seconds

# A measurement shorter than this is repeated inside one timing.
SHORTEST_SECONDS = 2e-3
# Calls in one timing on a GPU, each with a flush of the cache that takes longer than most of them.
MOST_CALLS = 50
# A call that takes longer is warm after one.
SOON_WARM_SECONDS = 1.0
# Rounds that take longer than this together become fewer, down to the fewest that have a median.
MOST_SECONDS = 60.0
FEWEST_ROUNDS = 3
LAYOUT_TRIALS = 3
PHASES = ("forward", "forward+backward")
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


@dataclass
class Result:
    """One rival on one case: times in seconds, ratios to plain by round, peak extra bytes, or why it is left out.

    `saved_bytes` is what a network's forward keeps for its backward; None for layers. On a GPU there are also what the
    host takes for a call, the layer's work and what the device reaches at most.
    """

    case: str
    group: str
    phase: str
    rival: str
    layout: str = ""
    ratios: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    extra_bytes: int = 0
    saved_bytes: int | None = None
    note: str = ""
    device: str = "cpu"
    host_seconds: float | None = None
    work: Work | None = None
    roof: Roof | None = None

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.ratios) < 2:
            return self.ratio, self.ratio
        first, _, third = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return first, third

    @property
    def microseconds(self) -> float:
        """Of one call."""
        return statistics.median(self.seconds) * 1e6

    @property
    def of_floor(self) -> float | None:
        """The least time that the work can take by the time that it took."""
        if self.work is None or self.roof is None:
            return None
        return floor_seconds(self.work, self.roof) / statistics.median(self.seconds)

    @property
    def overhead(self) -> float:
        """Microseconds by which one call exceeds that of plain in the same round."""
        return statistics.median(s - s / ratio for s, ratio in zip(self.seconds, self.ratios, strict=True)) * 1e6


class Runner:
    """A rival with its tensors, ready to be run: `once()` makes one call."""

    device: torch.device
    # Calls in one timing, and what it takes.
    repeats = 1
    timing_seconds = 0.0
    # On a GPU: whether a call starts with an empty cache.
    cold = True

    def once(self) -> tuple[torch.Tensor, ...]:
        raise NotImplementedError

    def saved_bytes(self) -> int | None:
        """What the forward keeps for the backward; None where it is not counted."""
        return None

    def calibrate(self) -> None:
        """Warm up, and choose how many calls make one timing."""
        self.once()
        self.repeats = 1
        seconds = self.time()
        if seconds < SOON_WARM_SECONDS:
            seconds = self.time()
        self.repeats = max(1, round(SHORTEST_SECONDS / max(seconds, 1e-7)))
        if self.device.type == "cuda":
            self.repeats = min(self.repeats, MOST_CALLS)
        self.timing_seconds = self.repeats * seconds

    def time(self) -> float:
        """Seconds of one call; on a GPU those of the device."""
        if self.device.type == "cuda":
            return clock.seconds(self.once, self.repeats, clock.cuda(self.device), self.cold)
        start = time.perf_counter()
        for _ in range(self.repeats):
            self.once()
        return (time.perf_counter() - start) / self.repeats

    def host_seconds(self) -> float | None:
        """What a call takes of the host before the device has computed it; None on the CPU."""
        if self.device.type != "cuda":
            return None
        return clock.host_seconds(self.once, self.repeats, clock.cuda(self.device))


class Comparison(Protocol):
    """The rivals of one case in one phase on one device."""

    case: object
    group: str
    phase: str
    device: torch.device
    rivals: Sequence[str]
    roof: Roof | None

    def layouts_of(self, rival: str) -> Sequence[str]:
        """The layouts that a rival may choose from."""

    def left_out(self, rival: str) -> str | None:
        """Why a rival is not measured, or None."""

    def work(self, rival: str) -> Work | None:
        """What the rival cannot do without; None where it is not counted."""

    def runner(self, rival: str, layout: str) -> Runner: ...

    def check(self, rival: str, runner: Runner) -> None:
        """Raises AssertionError where a rival is wrong."""


def best_layout(comparison: Comparison, rival: str) -> tuple[str, Runner]:
    """The runner in the fastest of the layouts, by the least of a few timings."""
    runners = {layout: comparison.runner(rival, layout) for layout in comparison.layouts_of(rival)}
    for runner in runners.values():
        runner.calibrate()
    if len(runners) == 1:
        return next(iter(runners.items()))
    least = {layout: min(runner.time() for _ in range(LAYOUT_TRIALS)) for layout, runner in runners.items()}
    layout = min(least, key=least.get)
    return layout, runners[layout]


def peak_bytes(runner: Runner) -> int:
    """The most memory that one call holds beyond what it started with."""
    if runner.device.type == "cuda":
        before = torch.cuda.memory_allocated(runner.device)
        torch.cuda.reset_peak_memory_stats(runner.device)
        runner.once()
        return torch.cuda.max_memory_allocated(runner.device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        runner.once()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def saved_bytes(forward: Callable[[], torch.Tensor], held: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages that `forward` keeps for its backward, beyond those of the tensors `held`."""
    own = {t.untyped_storage().data_ptr() for t in held}
    saved: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        # Held until the sum is taken, so that no address is used twice.
        output = forward()
    total = sum(saved.values())
    del output
    return total


def compare(
    comparison: Comparison,
    names: Sequence[str],
    rounds: int,
    run_rounds: Callable[[Callable[[], None], int], None],
    most_seconds: float = math.inf,
) -> list[Result]:
    """Check every named rival, then time each alternately with plain.

    `run_rounds(one_round, rounds)` runs the rounds: pytest-benchmark's pedantic mode. There are fewer of them, though
    at least FEWEST_ROUNDS, where they would take more than `most_seconds` together. A wrong rival is left out.

    Raises:
        AssertionError: memmod is wrong, or plain.
    """
    results, runners = {}, {}
    device = comparison.device.type
    # The same case on the CPU and on a GPU are two rows of the table.
    where = "" if device == "cpu" else f" {device}"
    case, group = f"{comparison.case}{where}", f"{comparison.group}{where}"
    for name in names:
        result = results[name] = Result(case, group, comparison.phase, name, device=device)
        result.note = comparison.left_out(name) or ""
        if result.note:
            continue
        result.layout, runners[name] = best_layout(comparison, name)
        try:
            comparison.check(name, runners[name])
        except AssertionError as error:
            if name.split()[0] in ("plain", "memmod"):
                raise
            result.note = str(error).splitlines()[0]
            del runners[name]
            continue
        result.extra_bytes = peak_bytes(runners[name])
        result.saved_bytes = runners[name].saved_bytes()
        result.host_seconds = runners[name].host_seconds()
        result.work, result.roof = comparison.work(name), comparison.roof

    order = [name for name in runners if name != "plain"]

    def one_round() -> None:
        if not order:
            results["plain"].seconds.append(runners["plain"].time())
        for name in order:
            base = runners["plain"].time()
            seconds = runners[name].time()
            results["plain"].seconds.append(base)
            results[name].seconds.append(seconds)
            results[name].ratios.append(seconds / base)
        order[:] = order[1:] + order[:1]

    a_round = sum(runners["plain"].timing_seconds + runners[name].timing_seconds for name in order)
    if rounds * a_round > most_seconds:
        rounds = min(rounds, max(FEWEST_ROUNDS, int(most_seconds / a_round)))
    run_rounds(one_round, rounds)
    # Plain against itself, for the noise of the machine.
    base = results["plain"].seconds
    results["plain"].ratios = [b / a for a, b in zip(base, base[1:], strict=False)] or [1.0]
    return list(results.values())
