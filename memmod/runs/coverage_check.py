"""What is tried of one model: its layers are gated, every gate acts, memories train, and a selection is baked."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memmod.errors import ModelError
from memmod.model import ModulatedModel, modulate
from memmod.nn.modulated import Modulated
from memmod.outputs import tensors_in
from memmod.surgery.config import ModulateConfig
from memmod.surgery.example import Example
from memmod.surgery.fold import FOLD_TOLERANCE
from memmod.surgery.plan import CHOSEN_NOT_TO_GATE
from memmod.surgery.random_weights import randomise
from memmod.surgery.trace import run_example, same_output

# In fp64 baking changes nothing but the order of a few products.
BAKE_TOLERANCE = 1e-9
# Samples whose outputs differ by less are lost on the way: MobileNetV1's initial weights leave 1e-29 of them.
VANISHED = 1e-6


@dataclass(frozen=True)
class Check:
    """What was found of one model.

    Args:
        layers: gated ones.
        gated_share: as `Summary.gated_share`.
        reasons: why other layers are not gated, and how many; without the classifier head.
        seconds, verify_seconds: of the processor, for all of it and for `verify` alone.
    """

    layers: int
    gated_share: float
    reasons: dict[str, int]
    seconds: float
    verify_seconds: float


class CheckFailed(ModelError):
    """One of the things that were tried does not hold; `stage` says which."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(f"{stage}: {message}")
        self.stage = stage


def check_model(
    base: nn.Module, example_input: Any, num_classes: int | None = None, config: ModulateConfig | None = None
) -> Check:
    """Gate a model, verify it, take one step of training, bake a selection, and compare each with what it must be.

    Its one-dimensional parameters and zero weights are drawn anew, so that every layer matters, and all weights where
    nothing of the samples reaches the output.

    Raises:
        CheckFailed: something does not hold; the first such is named.
    """
    start = time.process_time()
    example = Example.of(example_input)
    base = _drawn(base, example)
    wf = _stage("modulate", lambda: modulate(base, num_classes, example_input, config))
    verify_start = time.process_time()
    _stage("verify", lambda: wf.verify(example_input))
    verify_seconds = time.process_time() - verify_start
    _stage("nothing forgotten", lambda: _check_nothing(wf, base, example))
    _stage("step", lambda: _check_step(wf, example))
    _stage("bake", lambda: _check_bake(wf, example))
    summary = wf.summary()
    reasons = Counter(
        row.reason for row in summary.rows if row.action == "skipped" and row.reason not in CHOSEN_NOT_TO_GATE
    )
    layers = sum(isinstance(module, Modulated) for module in wf.model.modules())
    return Check(layers, summary.gated_share, dict(reasons), time.process_time() - start, verify_seconds)


def _drawn(base: nn.Module, example: Example) -> nn.Module:
    """A base in which every layer matters: weights that leave nothing of the samples are drawn anew too."""
    base = randomise(base).eval()
    with torch.no_grad():
        output = run_example(base, example.args, example.kwargs)
    floats = [t.double() for t in tensors_in(output) if t.is_floating_point() and len(t) == example.batch]
    if floats and all((t - t[:1]).abs().max() <= VANISHED * t.abs().max() for t in floats):
        with torch.no_grad():
            for module in base.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d)):
                    nn.init.kaiming_normal_(module.weight, generator=torch.Generator().manual_seed(3))
    return base


def _stage(name: str, check: Any) -> Any:
    try:
        return check()
    except Exception as error:
        raise CheckFailed(name, f"{type(error).__name__}: {error}") from error


def _run(model: nn.Module, example: Example, **options: Any) -> Any:
    return run_example(model, example.args, {**example.kwargs, **options})


def _check_nothing(wf: ModulatedModel, base: nn.Module, example: Example) -> None:
    with torch.no_grad():
        expected, found = _run(base, example), _run(wf, example, forget=-1)
    if not same_output(found, expected, FOLD_TOLERANCE):
        raise ModelError("with nothing forgotten the output is not the base's")


def _check_step(wf: ModulatedModel, example: Example) -> None:
    """The selected classes learn, the others and the base do not."""
    forget = torch.tensor([0, 3, -1][: example.batch])
    before = wf.memory_state()
    optimiser = torch.optim.SGD(wf.memory_parameters(), lr=1.0)
    output = wf.verified_output(_run(wf.train(), example, forget=forget))
    # No sum of squares: that of normalised embeddings is constant.
    (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(2))).mean().backward()
    rows = [c for c in forget.tolist() if c >= 0]
    others = [c for c in range(wf.num_classes) if c not in rows]
    for name, memory in wf.named_memories():
        if memory.grad is None or not torch.isfinite(memory.grad).all() or not memory.grad[rows].any(dim=1).all():
            raise ModelError(f"{name}: a selected class has no gradient, or one that is not finite")
        if memory.grad[others].any():
            raise ModelError(f"{name}: a class that no sample selects has a gradient")
    memories = {id(memory) for memory in wf.memory_parameters()}
    for name, parameter in wf.named_parameters():
        if id(parameter) not in memories and parameter.grad is not None:
            raise ModelError(f"{name} of the frozen base has a gradient")
    optimiser.step()
    if not any(not torch.equal(before[name], memory) for name, memory in wf.named_memories()):
        raise ModelError("a step of training changes no memory")


def _check_bake(wf: ModulatedModel, example: Example) -> None:
    """In fp64, an ordinary module without memmod that gives what the gated one gives, and not what nothing gives."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(torch.randn(memory.shape, generator=generator) + 2)
        wf = wf.double().eval()
        example = example.mapped(lambda t: t.double() if t.is_floating_point() else t)
        baked = wf.bake(1)
        gated, expected, nothing = _run(wf, example, forget=1), _run(baked, example), _run(wf, example, forget=-1)
    if any(type(module).__module__.partition(".")[0] == "memmod" for module in baked.modules()):
        raise ModelError("the baked model holds modules of memmod")
    if not same_output(gated, expected, BAKE_TOLERANCE):
        raise ModelError(f"the baked model differs from the gated one: {_difference(gated, expected):.1e}")
    if same_output(gated, nothing, FOLD_TOLERANCE):
        raise ModelError("forgetting a class changes nothing")


def _difference(found: Any, expected: Any) -> float:
    """The largest difference, in units of the largest magnitude of its tensor."""
    pairs: list[tuple[Tensor, Tensor]] = list(zip(tensors_in(found), tensors_in(expected), strict=True))
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs if a.is_floating_point() and a.numel())
