"""Runs a network's rivals, a training step or a forward, and checks them against the gated network in fp64."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import cached_property
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_variants import VARIANTS, on_variant, why_not
from benchmarks.measure import LAYOUTS, Runner, saved_bytes
from benchmarks.networks import NETWORK_RIVALS, Network
from benchmarks.precision import eps


class NetworkRunner(Runner):
    """A rival of a network in one phase: "forward", or with the backward of a step of unlearning."""

    # What a network leaves in the cache is what its next step finds there.
    cold = False

    def __init__(self, rival: str, network: Network, phase: str) -> None:
        self.rival, self.x, self.target, self.backward = rival, network.x, network.target, phase != "forward"
        self.device = network.x.device
        made = NETWORK_RIVALS["memmod" if rival in VARIANTS else rival](network)
        self.call, self.leaves, self.module = made.call, made.leaves, made.module

    def once(self) -> tuple[Tensor, ...]:
        """(logits,) or (logits, gradient of each memory); plain networks have one token gradient instead."""
        with on_variant(self.rival):
            return self._once()

    def _once(self) -> tuple[Tensor, ...]:
        if not self.backward:
            with torch.no_grad():
                return (self.call(self.x),)
        logits = self.call(self.x)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        loss = F.kl_div(wide.log_softmax(1), self.target, reduction="batchmean")
        return (logits.detach(), *torch.autograd.grad(loss, self.leaves))

    def saved_bytes(self) -> int | None:
        if not self.backward:
            return None
        held = chain(self.module.parameters(), self.module.buffers(), self.leaves, (self.x,))
        return saved_bytes(lambda: self.call(self.x), held)


class NetworkComparison:
    """The rivals of one network in one phase."""

    roof = None

    def __init__(self, network: Network, phase: str) -> None:
        self.network, self.case, self.phase = network, network.case, phase
        what = "serving" if phase == "forward" else "step"
        self.group = f"{what} {network.case.group} {network.case.dtype}"
        self.device = network.x.device
        self.rivals = (*NETWORK_RIVALS, *VARIANTS) if self.device.type == "cuda" else tuple(NETWORK_RIVALS)
        self.layouts = tuple(LAYOUTS) if network.case.convolutional else ("",)

    def left_out(self, rival: str) -> str | None:
        if rival in VARIANTS:
            return why_not(rival)
        return "nothing to fold" if rival.endswith(" folded") and not self.network.norms else None

    def layouts_of(self, rival: str) -> Sequence[str]:
        return self.layouts

    def work(self, rival: str) -> None:
        return None

    def runner(self, rival: str, layout: str) -> NetworkRunner:
        return NetworkRunner(rival, self.network.to(LAYOUTS[layout]) if layout else self.network, self.phase)

    @cached_property
    def exact(self) -> tuple[Tensor, ...]:
        """Logits and memory gradients of the unfolded network with eager gates in fp64."""
        return NetworkRunner("eager unfolded", self.network.to(torch.float64), self.phase).once()

    @cached_property
    def exact_plain(self) -> Tensor:
        """The logits without gates in fp64."""
        wide = self.network.to(torch.float64)
        with torch.no_grad():
            return wide.base(wide.x)

    @cached_property
    def allowed(self) -> tuple[float, float]:
        """The relative error that logits and memory gradients may have: 2 × the eager forms' worst + eps."""
        eager = [name for name in self.rivals if name.startswith("eager") and self.left_out(name) is None]
        errors = [self._errors(self.runner(name, layout)) for name in eager for layout in self.layouts]
        relative = eps(self.network.x.dtype, self.device, torch.backends.cudnn.conv, torch.backends.cuda.matmul)
        return 2 * max(logits for logits, _ in errors) + relative, 2 * max(worst for _, worst in errors) + relative

    def _errors(self, runner: NetworkRunner) -> tuple[float, float]:
        """Of the logits, and the worst memory's median over classes.

        A ReLU whose input is rounding away from 0 may pass or stop a gradient: that spoils the rows of one sample's
        class in every memory before it, in eager forms as in others, so single classes prove nothing.
        """
        (logits, exact_logits), *gradients = zip(runner.once(), self.exact, strict=True)
        classes = self.network.index.unique()
        classes = classes[classes >= 0]
        medians = [
            statistics.median(_relative_error(got[c], exact[c]) for c in classes.tolist()) for got, exact in gradients
        ]
        return _relative_error(logits, exact_logits), max(medians, default=0.0)

    def check(self, rival: str, runner: NetworkRunner) -> None:
        """A rival's logits and memory gradients are those of the gated network, a plain one's those without gates.

        Raises:
            AssertionError: it is wrong, so it must not be timed.
        """
        if rival.startswith("plain"):
            errors = (_relative_error(runner.once()[0], self.exact_plain),)
        else:
            errors = self._errors(runner)
        for name, error, bound in zip(("logits", "memory gradients"), errors, self.allowed, strict=False):
            assert error <= bound, f"{rival} is wrong on {self.case}: {name} off by {error:.2e} > {bound:.2e}"


def _relative_error(got: Tensor, exact: Tensor) -> float:
    """The norm of the difference by the norm of the exact values."""
    error = ((got.double() - exact).norm() / exact.norm().clamp_min(1e-300)).item()
    return error if error == error else float("inf")
