"""Requests that each forget a class of their own: one mixed batch, one batch for each class, one baked model for each.

    python -m benchmarks.serving [--network ViT-T] [--classes 10 100 1000] [--rounds 9] [--batch 32]

Prints the table of docs/serving.md: requests per second, and the memory that it takes to serve every class. A batch of
requests, whose classes are drawn uniformly, is answered in each of the ways; first its logits are checked.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from benchmarks.measure import LAYOUTS, MOST_SECONDS, Result, Runner, best_layout, compare
from memmod import ModulatedModel, modulate
from memmod.nn.modulated import Modulated
from memmod.surgery.random_weights import randomise
from memmod.zoo import create_model

CLASSES = (10, 100, 1000)
MIXED, BY_CLASS, BAKED = "memmod mixed", "memmod by class", "baked"
WAYS = ("plain", MIXED, BY_CLASS, BAKED)


@dataclass(frozen=True)
class ServingCase:
    """A network of `memmod.zoo` with C classes, and a batch of requests ``[batch, channels, side, side]``."""

    name: str
    model: str
    side: int
    classes: int
    batch: int = 32
    channels: int = 3
    convolutional: bool = True

    def __str__(self) -> str:
        return f"{self.name}, {self.side}×{self.side}, {self.classes:,} classes"


NETWORKS = (
    ServingCase("EfficientNet-Lite0", "timm:efficientnet_lite0", 64, 0),
    ServingCase("ViT-T", "timm:vit_tiny_patch16_224", 96, 0, convolutional=False),
)


@dataclass
class Requests:
    """Images ``[B, ...]``, the class that each is to be seen without (int64 ``[B]``), and who can answer them."""

    case: ServingCase
    base: nn.Module
    wf: ModulatedModel
    baked: dict[int, nn.Module]
    x: Tensor
    classes: Tensor

    def move(self, layout: torch.memory_format) -> None:
        """Have images and weights in another layout."""
        for module in (self.base, self.wf, *self.baked.values()):
            module.to(memory_format=layout)
        self.x = self.x.contiguous(memory_format=layout)


def make_requests(case: ServingCase, seed: int = 0) -> Requests:
    """Random weights with which every layer matters, random memories, images and classes."""
    generator = torch.Generator().manual_seed(seed)
    shape = (case.channels, case.side, case.side)
    base = randomise(create_model(case.model, case.classes, shape, seed=seed), seed).eval().requires_grad_(False)
    x = torch.randn(case.batch, *shape, generator=generator)
    wf = modulate(base, case.classes, x[:2])
    wf.load_memory_state(
        {name: 2 + torch.randn(memory.shape, generator=generator) for name, memory in wf.named_memories()}
    )
    classes = torch.randint(case.classes, (case.batch,), generator=generator)
    # Of all classes they would not fit: those that are asked for, which favours them.
    baked = {c: wf.bake(c).requires_grad_(False) for c in classes.unique().tolist()}
    return Requests(case, base, wf, baked, x, classes)


def _by_class(requests: Requests, answer: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Logits ``[B, C]``, asked for class by class and put back in order."""
    logits = None
    for c in requests.baked:
        rows = (requests.classes == c).nonzero().flatten()
        own = answer(c, requests.x[rows])
        if logits is None:
            logits = own.new_empty(len(requests.x), own.shape[1])
        logits[rows] = own
    return logits


def answers(way: str, requests: Requests) -> Tensor:
    """The logits ``[B, C]`` of all requests; "plain" forgets nothing."""
    if way == "plain":
        return requests.base(requests.x)
    if way == MIXED:
        return requests.wf(requests.x, forget=requests.classes)
    if way == BY_CLASS:
        return _by_class(requests, lambda c, x: requests.wf(x, forget=c))
    return _by_class(requests, lambda c, x: requests.baked[c](x))


class ServingRunner(Runner):
    """One way to answer the requests."""

    device = torch.device("cpu")

    def __init__(self, way: str, requests: Requests) -> None:
        self.way, self.requests = way, requests

    def once(self) -> tuple[Tensor]:
        with torch.no_grad():
            return (answers(self.way, self.requests),)


class ServingComparison:
    """The ways to answer one batch of requests."""

    roof, phase, rivals, device = None, "forward", WAYS, torch.device("cpu")

    def __init__(self, requests: Requests) -> None:
        self.requests, self.case, self.group = requests, requests.case, f"serving {requests.case.name}"
        self.layouts: Sequence[str] = tuple(LAYOUTS) if requests.case.convolutional else ("",)

    def choose_layout(self) -> None:
        """Leave the one layout in which the frozen network is fastest."""
        if len(self.layouts) > 1:
            layout, _ = best_layout(self, "plain")
            self.requests.move(LAYOUTS[layout])
            self.layouts = ("",)

    def left_out(self, rival: str) -> None:
        return None

    def work(self, rival: str) -> None:
        return None

    def layouts_of(self, rival: str) -> Sequence[str]:
        return self.layouts

    def runner(self, rival: str, layout: str) -> ServingRunner:
        requests = self.requests
        if layout:
            # Only plain is ever tried in several.
            requests = replace(requests, base=copy.deepcopy(requests.base), baked={})
            requests.base.to(memory_format=LAYOUTS[layout])
            requests.x = requests.x.contiguous(memory_format=LAYOUTS[layout])
        return ServingRunner(rival, requests)

    @cached_property
    def exact(self) -> dict[str, Tensor]:
        """Logits in fp64: of the base, and of each request's own baked model."""
        requests = self.requests
        with torch.no_grad():
            forgotten = _by_class(requests, lambda c, x: copy.deepcopy(requests.baked[c]).double()(x.double()))
            return {"plain": copy.deepcopy(requests.base).double()(requests.x.double()), BAKED: forgotten}

    @cached_property
    def allowed(self) -> float:
        """Twice the relative error of plain and baked in fp32, plus eps."""
        errors = [self._error(way, ServingRunner(way, self.requests)) for way in self.exact]
        return 2 * max(errors) + torch.finfo(torch.float32).eps

    def _error(self, way: str, runner: Runner) -> float:
        exact = self.exact["plain" if way == "plain" else BAKED]
        error = ((runner.once()[0].double() - exact).norm() / exact.norm()).item()
        return error if error == error else math.inf

    def check(self, rival: str, runner: Runner) -> None:
        """Raises AssertionError where a request's logits are not those of its own baked model."""
        error = self._error(rival, runner)
        assert error <= self.allowed, f"{rival} is wrong on {self.case}: logits off by {error:.2e} > {self.allowed:.2e}"


def megabytes(requests: Requests) -> dict[str, float]:
    """What serving every class keeps: tensors, and memmod's second copy of each weight that its kernels read."""
    tensors = {way: 0 for way in ("plain", MIXED, BAKED)}
    tensors["plain"] = _bytes(requests.base)
    second = sum(m.weight.nbytes for m in requests.wf.modules() if isinstance(m, Modulated) and hasattr(m, "weight"))
    tensors[MIXED] = _bytes(requests.wf) + second
    tensors[BAKED] = _bytes(next(iter(requests.baked.values()))) * requests.case.classes
    return {way: count / 1e6 for way, count in tensors.items()}


def _bytes(module: nn.Module) -> int:
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def row(requests: Requests, results: Sequence[Result]) -> str:
    """A line of the table: requests per second are of the median call, how many times as fast the medians of ratios."""
    found = {result.rival: result for result in results}
    speeds = {name: len(requests.x) / statistics.median(result.seconds) for name, result in found.items()}
    times = {name: found[name].ratio / found[MIXED].ratio for name in (BY_CLASS, BAKED)}
    size = megabytes(requests)
    cells = [
        str(requests.case),
        str(len(requests.baked)),
        f"{speeds['plain']:,.0f}",
        f"{speeds[MIXED]:,.0f}",
        *(f"{speeds[name]:,.0f} ({times[name]:.1f})" for name in (BY_CLASS, BAKED)),
        *(f"{size[name]:,.0f}" for name in ("plain", MIXED, BAKED)),
    ]
    return f"| {' | '.join(cells)} |"


HEADER = (
    "| network | classes asked for | plain | one mixed batch | a batch for each class | a baked model for each class "
    "| MB: plain | memmod | baked, all classes |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=[network.name for network in NETWORKS], help="this one alone")
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=32, help="requests at a time")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))
    print(f"{torch.get_num_threads()} threads, batches of {options.batch}\n\n{HEADER}", flush=True)
    for network in [network for network in NETWORKS if options.network in (None, network.name)]:
        for classes in options.classes:
            case = replace(network, classes=classes, batch=options.batch)
            comparison = ServingComparison(make_requests(case))
            comparison.choose_layout()
            results = compare(comparison, WAYS, options.rounds, _rounds, MOST_SECONDS)
            print(row(comparison.requests, results), flush=True)


def _rounds(one_round: Callable[[], None], rounds: int) -> None:
    for _ in range(rounds):
        one_round()


if __name__ == "__main__":
    main()
