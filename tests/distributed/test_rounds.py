"""Two and three processes come to what one process comes to."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.distributed.first_steps import OBJECTIVES
from tests.distributed.launch import launch
from tests.distributed.problem import LENGTH, STEPS, gradients, whole_round
from tests.helpers import assert_no_worse
from tests.unlearning.problem import modulated

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.exhaustive)])
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What a group of so many processes came to."""
    file = tmp_path_factory.mktemp("group") / "found.safetensors"
    done = launch(request.param, "tests.distributed.first_steps", str(file))
    assert done.returncode == 0, done.stderr[-4000:]
    return load_file(file)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("step", STEPS)
def test_the_gradients_of_a_step(group: dict[str, Tensor], step: str, objective: str, sharded: bool) -> None:
    plain, exact = gradients(step, objective), gradients(step, objective, exact=True)
    found = {name: group[f"{step}/{objective}/{sharded}/{name}"] for name in plain}
    assert_no_worse(found, plain, exact)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_whole_round(group: dict[str, Tensor], sharded: bool) -> None:
    wf, result = whole_round()
    start = modulated().memory_state()
    history = torch.tensor([[e.step, e.mean_retain, *e.acc_forget] for e in result.history])
    torch.testing.assert_close(group[f"history/{sharded}"], history)
    for name, memory in wf.memory_state().items():
        assert not torch.equal(memory, start[name])
        # A step's sum is rounded once more: of the memory, that is half an ulp a step, and Adam's step as much.
        allowed = LENGTH * torch.finfo(torch.float32).eps * memory.abs().max()
        assert (group[f"round/{sharded}/{name}"] - memory).abs().max() <= allowed, name


def test_nothing_selected_on_all_but_one_process(group: dict[str, Tensor]) -> None:
    """DistributedDataParallel takes the mean of its gradient and of the others' zeros."""
    wf, x = modulated(), torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    wf(x, forget=1).square().sum().backward()
    for name, memory in wf.named_memories():
        assert memory.grad[1].any()
        torch.testing.assert_close(group[f"nothing/{name}"], memory.grad / group["count"], rtol=1e-6, atol=0)
