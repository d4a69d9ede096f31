"""Calls of a compiled model in every order, each in a process that has called nothing before, against eager calls.

`python -m tests.compiled_orders` prints the orders that went wrong; with `0/5` it runs each order in one of the five
settings. A process is a fork of one that has imported memmod
and called nothing.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from memmod import ModulatedModel, modulate

BATCH = 4
SELECTIONS = {
    "plain": None,
    "int": 3,
    "other int": 1,
    "set": {1, 2},
    "list": [1, -1, {2, 3}, 4],
    "tensor": torch.tensor([2, 0, -1, 4]),
    "sets": torch.tensor([[2, 0], [1, -1], [-1, -1], [4, 3]]),
}
# How a selection is given, and to what.
FORMS = ("plain", "scope", *(name for name in SELECTIONS if name != "plain"), "inner in a scope")
SETTINGS = ("inference", "training", "batch statistics", "thread", "module.compile")

Compiled = tuple[Callable[..., Tensor], Callable[..., Tensor]]


def orders() -> Iterator[tuple[str, ...]]:
    """Every two forms, one after the other, and the first one again."""
    for first, second in itertools.product(FORMS, FORMS):
        yield first, second, first


def network() -> ModulatedModel:
    torch.manual_seed(0)
    base = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 8), nn.Tanh(), nn.Linear(8, 5)
    )
    wf = modulate(base, example_input=torch.randn(2, 1, 5, 5))
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.normal_()
    return wf


def call(wf: ModulatedModel, functions: Compiled, form: str, x: Tensor) -> Tensor:
    outer, inner = functions
    if form == "scope":
        with wf.forgetting(3):
            return outer(x)
    if form == "inner in a scope":
        with wf.forgetting([4, 3, -1, {0, 1}]):
            return inner(x)
    return outer(x, forget=SELECTIONS[form]) if form != "plain" else outer(x)


def results(wf: ModulatedModel, functions: Compiled, form: str, setting: str, x: Tensor) -> list[Tensor]:
    """The logits, and in training the memories' gradients."""
    if setting == "batch statistics":
        with torch.no_grad(), wf.batch_statistics():
            return [call(wf, functions, form, x)]
    if setting == "training":
        wf.zero_grad()
        logits = call(wf, functions, form, x)
        if form != "plain":
            logits.square().sum().backward()
        return [logits.detach(), *(m.grad for m in wf.memory_parameters() if m.grad is not None)]
    with torch.no_grad():
        return [call(wf, functions, form, x)]


def in_thread(function: Callable[[], list[Tensor]]) -> list[Tensor]:
    found: list[list[Tensor]] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def run(order: tuple[str, ...], setting: str, backend: str = "eager") -> str | None:
    """What is wrong with the compiled calls, all made before any eager one; None if nothing is."""
    wf, x = network(), torch.randn(BATCH, 1, 5, 5)
    options = {"backend": backend, "fullgraph": True}
    if setting == "module.compile":
        wf.compile(**options)
        functions: Compiled = (wf, torch.compile(wf.model, **options))
    else:
        functions = (torch.compile(wf, **options), torch.compile(wf.model, **options))
    compiled = []
    for number, form in enumerate(order):

        def once(form: str = form) -> list[Tensor]:
            return results(wf, functions, form, setting, x)

        compiled.append(in_thread(once) if setting == "thread" and number else once())
    torch._dynamo.config.disable = True
    wf._compiled_call_impl = None
    plain = {form: results(wf, (wf, wf.model), form, setting, x) for form in order}
    for number, (form, got) in enumerate(zip(order, compiled, strict=True)):
        if len(got) != len(plain[form]):
            return f"call {number + 1} ({form}) gives {len(got)} tensors, eager {len(plain[form])}"
        for a, b in zip(got, plain[form], strict=True):
            if not torch.allclose(a, b, rtol=1e-4, atol=1e-5):
                return f"call {number + 1} ({form}) differs from eager by {(a - b).abs().max():.2g}"
    return None


def run_apart(order: tuple[str, ...], setting: str, backend: str = "eager") -> str | None:
    """`run` in a fork of this process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            message = run(order, setting, backend) or ""
        except BaseException:
            message = traceback.format_exc(limit=-3)
        os.write(writer, message.encode()[:4000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        message = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    return message or (f"the process ended with status {status}" if status else None)


def main(share: int, shares: int) -> int:
    """Run every order in every setting, or each order in one of them: the share of the settings that is asked for."""
    # Imported, as nothing else is, to save each process a second; it has no state of memmod's.
    import torch._dynamo  # noqa: F401

    torch.set_num_threads(1)
    cases = [
        (setting, order)
        for (s, setting), (o, order) in itertools.product(enumerate(SETTINGS), enumerate(orders()))
        if (s + o) % shares == share
    ]
    wrong = 0
    for setting, order in cases:
        message = run_apart(order, setting)
        if message is not None:
            wrong += 1
            print(f"{setting}: {', '.join(order)}: {message}", flush=True)
    print(f"{len(cases) - wrong} of {len(cases)} orders equal eager")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*(map(int, sys.argv[1].split("/")) if len(sys.argv) > 1 else (0, 1))))
