"""Compiled models: every order of calls equals eager, one graph serves every selection of a form."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from memmod import ModulatedModel, modulate
from memmod.surgery.random_weights import randomise
from memmod.zoo import create_model
from tests.compiled_orders import SELECTIONS, network

ROOT = Path(__file__).resolve().parent.parent
CLASSES = 10


# Each order in one of the settings, and fewer of them; `python -m tests.compiled_orders` runs each in every setting.
SHARES = [
    pytest.param("0/25", 16, marks=pytest.mark.slow),
    pytest.param("1/5", 81, marks=pytest.mark.exhaustive),
]


@pytest.mark.parametrize(("share", "count"), SHARES)
def test_every_order_of_calls_equals_eager(share: str, count: int) -> None:
    command = [sys.executable, "-m", "tests.compiled_orders", share]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == f"{count} of {count} orders equal eager"


def test_the_orders_compare_different_logits() -> None:
    wf, x = network(), torch.randn(4, 1, 5, 5)
    with torch.no_grad():
        logits = [wf(x, forget=selection) for selection in SELECTIONS.values()]
    for number, one in enumerate(logits):
        assert not any(torch.allclose(one, other, atol=1e-3) for other in logits[:number])


@pytest.fixture(scope="module")
def wf() -> ModulatedModel:
    wf = modulate(randomise(create_model("resnet", CLASSES, (1, 8, 8))).eval(), class_names=list("abcdefghij"))
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(torch.randn(memory.shape))
    return wf


@pytest.fixture(autouse=True)
def fresh_caches():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


FORMS = {
    "ints": list(range(12 - 2)),
    "names": list("abcdefghij"),
    "sets": [{c, (c + 1) % CLASSES} for c in range(CLASSES)],
    "sets of 1 to 3": [{(c + d) % CLASSES for d in range(1 + c % 3)} for c in range(12)],
    "lists": [[c % CLASSES, -1, 3, (c + 1) % CLASSES] for c in range(12)],
    "lists of sets": [[{(c + d) % CLASSES for d in range(1 + c % 3)}, -1, 3, {1, 2}] for c in range(12)],
    "0-d tensors": [torch.tensor(c) for c in range(CLASSES)],
    "tensors": [torch.tensor([c, -1, CLASSES - 1 - c, 0]) for c in range(CLASSES)],
    "tensors of sets": [torch.tensor([[c, -1], [0, c], [-1, -1], [4, 5]]) for c in range(CLASSES)],
}
# A set of one class is an index of another shape than larger sets.
GRAPHS = {"sets of 1 to 3": 2, "lists of sets": 2}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("grad", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_one_graph_serves_every_value(wf: ModulatedModel, form: str, grad: bool) -> None:
    x, counter = torch.randn(4, 1, 8, 8), CompileCounter()
    compiled = torch.compile(wf, backend=counter, fullgraph=True)
    with torch.set_grad_enabled(grad):
        for value in FORMS[form]:
            torch.testing.assert_close(compiled(x, forget=value), wf(x, forget=value), rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= GRAPHS.get(form, 1)


@pytest.mark.slow
def test_all_forms_together_stay_below_the_limit_of_recompilation(wf: ModulatedModel) -> None:
    x = torch.randn(4, 1, 8, 8)
    compiled = torch.compile(wf, backend="eager", fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            for value in (None, -1, *(value for values in FORMS.values() for value in values[:3])):
                torch.testing.assert_close(compiled(x, forget=value), wf(x, forget=value), rtol=1e-4, atol=1e-5)


def test_scopes_around_a_compiled_part(wf: ModulatedModel) -> None:
    x, counter = torch.randn(4, 1, 8, 8), CompileCounter()
    compiled = torch.compile(wf.model, backend=counter, fullgraph=True)
    with torch.no_grad():
        for c in range(CLASSES):
            for value in (c, [c, -1, 1, 2], None):
                with wf.forgetting(value):
                    torch.testing.assert_close(compiled(x), wf.model(x), rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= 4


def per_sample(wf: ModulatedModel, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return 2 * wf(x, forget=index)


def in_a_scope(wf: ModulatedModel, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    with wf.forgetting(index):
        return 2 * wf.model(x)


@pytest.mark.parametrize("function", [per_sample, in_a_scope])
def test_inside_a_compiled_function_of_the_callers(wf: ModulatedModel, function: Callable) -> None:
    x, counter = torch.randn(4, 1, 8, 8), CompileCounter()
    compiled = torch.compile(lambda x, index: function(wf, x, index), backend=counter, fullgraph=True)
    with torch.no_grad():
        # Until a scope has been opened, code is compiled that does not look for one.
        function(wf, x, torch.tensor([1, -1, 3, 8]))
        for c in range(CLASSES):
            index = torch.tensor([c, -1, 3, 9 - c])
            torch.testing.assert_close(compiled(x, index), function(wf, x, index), rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.slow
def test_a_generators_scope_around_a_compiled_part(wf: ModulatedModel) -> None:
    x = torch.randn(4, 1, 8, 8)
    compiled = torch.compile(wf.model, backend="eager")

    def stream(c: int):
        with wf.forgetting(c):
            while True:
                yield compiled(x)

    with torch.no_grad():
        streams = {c: stream(c) for c in (3, 5)}
        for c in (3, 5, 3, 5):
            torch.testing.assert_close(next(streams[c]), wf(x, forget=c), rtol=1e-4, atol=1e-5)
        for generator in streams.values():
            generator.close()
        torch.testing.assert_close(compiled(x), wf(x, forget=-1), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiling_layers_in_place_keeps_their_names(wf: ModulatedModel) -> None:
    other = modulate(randomise(create_model("resnet", CLASSES, (1, 8, 8))).eval())
    names = [name for name, _ in other.named_memories()]
    other.model.blocks[0].conv1 = torch.compile(other.model.blocks[0].conv1, backend="eager")
    other.model = torch.compile(other.model, backend="eager")
    assert [name for name, _ in other.named_memories()] == names
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        for forget in (3, None, {1, 2}):
            other.load_memory_state(wf.memory_state())
            torch.testing.assert_close(other(x, forget=forget), wf(x, forget=forget), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other.bake(3)(x), wf(x, forget=3), rtol=1e-4, atol=1e-5)
    for ordinary in (other.bake(3), other.unload()):
        assert not any(
            "_orig_mod" in name or type(m).__module__.startswith("memmod.nn") for name, m in ordinary.named_modules()
        )


def test_a_base_of_torch_nn_is_one_graph() -> None:
    base = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    wf = modulate(base, example_input=torch.randn(2, 4))
    counter = CompileCounter()
    compiled = torch.compile(wf, backend=counter, fullgraph=True)
    x = torch.randn(5, 4)
    torch.testing.assert_close(compiled(x, forget=1), wf(x, forget=1))
    assert counter.frame_count == 1


@pytest.mark.slow
def test_strict_export_takes_the_selection_as_an_input(wf: ModulatedModel) -> None:
    x, index = torch.randn(4, 1, 8, 8), torch.tensor([3, -1, 0, 9])
    for strict in (False, True):
        exported = torch.export.export(wf, (x,), {"forget": index}, strict=strict).module()
        for other in (index, index.flip(0)):
            torch.testing.assert_close(exported(x, forget=other), wf(x, forget=other), rtol=1e-4, atol=1e-5)
