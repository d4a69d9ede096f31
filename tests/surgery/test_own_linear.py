"""Linear layers that are no nn.Linear, transformers' Conv1D for one, are gated, baked into, and found as the head."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memmod import ModulateConfig, ModulatedModel, ModulatedOutput, modulate
from memmod.files.state_hash import state_sha256
from memmod.surgery.random_weights import randomise


class Conv1D(nn.Module):
    """As in Hugging Face's transformers: a linear layer with its weight ``[I, O]``."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf) * nx**-0.5)
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


class Own(nn.Module):
    """A linear layer of somebody's own; `compute` says what it does with its weight and bias."""

    def __init__(self, inputs: int, units: int, compute, name: str = "weight", bias: bool = True) -> None:
        super().__init__()
        self.name, self.compute = name, compute
        setattr(self, name, nn.Parameter(torch.randn(units, inputs) * inputs**-0.5))
        self.bias = nn.Parameter(torch.randn(units)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, getattr(self, self.name), self.bias)


class Net(nn.Module):
    def __init__(self, part: nn.Module, head: nn.Module | None = None, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.part = part
        self.norm = norm or nn.Identity()
        self.head = head or nn.Linear(8, 4)
        randomise(self).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.norm(self.part(self.stem(x)))).mean(1))


X = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
LINEAR = {
    "Conv1D": lambda: Conv1D(8, 6),
    "F.linear": lambda: Own(6, 8, F.linear),
    "without bias": lambda: Own(6, 8, lambda x, w, _: x @ w.T, bias=False),
    "another name": lambda: Own(6, 8, F.linear, name="kernel"),
    "einsum": lambda: Own(6, 8, lambda x, w, b: torch.einsum("bni,oi->bno", x, w) + b),
    "flat": lambda: Own(6, 8, lambda x, w, b: F.linear(x.flatten(0, 1), w, b).unflatten(0, x.shape[:2])),
    "overwritten": lambda: Own(6, 8, lambda x, w, b: F.linear(x, w).add_(b)),
}
OTHER = {
    "with an activation": lambda: Own(6, 8, lambda x, w, b: F.linear(x, w, b).relu()),
    "scaled": lambda: Own(6, 8, lambda x, w, b: F.linear(x, 1.5 * w, b)),
    "normalised": lambda: Own(6, 8, lambda x, w, b: F.linear(F.normalize(x, dim=-1), F.normalize(w, dim=-1)) + b),
    "of other rows": lambda: Own(6, 8, lambda x, w, b: F.linear(x.flip(1), w, b)),
}


def train(wf: ModulatedModel) -> None:
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(torch.randn(memory.shape, generator=torch.Generator().manual_seed(0)))


def check(base: nn.Module, wf: ModulatedModel, x: Tensor = X) -> nn.Module:
    wf.verify(x)
    assert torch.equal(wf(x, forget=-1), base(x))
    train(wf)
    baked = wf.bake(2)
    torch.testing.assert_close(baked(x), wf(x, forget=2))
    assert not torch.allclose(baked(x), base(x), atol=1e-2)
    assert not any(type(module).__module__.startswith("memmod") for module in baked.modules())
    assert torch.equal(wf.unload()(x), base(x)) and state_sha256(wf.unload()) == wf.base_sha256
    wf(x, forget=torch.tensor([0, 1, -1])).square().sum().backward()
    assert all(memory.grad[:2].any() for memory in wf.memory_parameters())
    return baked


@pytest.mark.parametrize("granularity", ["unit", "input", "unit+input"])
@pytest.mark.parametrize("kind", LINEAR)
def test_is_gated(kind: str, granularity: str) -> None:
    torch.manual_seed(0)
    base = Net(LINEAR[kind]())
    wf = modulate(base, example_input=X, config=ModulateConfig(granularity=granularity))
    rows = {row.name: row.action for row in wf.summary().rows}
    assert rows == {"stem": "gated", "part": "gated", "head": "skipped"}
    layer = wf.model.part
    assert (
        isinstance(layer, ModulatedOutput)
        and dict(layer.memories()).keys()
        == {
            "unit": {"memory"},
            "input": {"input_memory"},
            "unit+input": {"memory", "input_memory"},
        }[granularity]
    )
    assert all(memory.shape[1] == {"memory": 8, "input_memory": 6}[name] for name, memory in layer.memories())
    baked = check(base, wf)
    if granularity == "unit":
        # The gates are in its own weight: the network has the base's architecture.
        assert type(baked.part) is type(base.part) and list(baked.state_dict()) == list(base.state_dict())


@pytest.mark.parametrize("kind", OTHER)
def test_what_computes_something_else_is_listed(kind: str) -> None:
    torch.manual_seed(0)
    base = Net(OTHER[kind]())
    rows = {row.name: row for row in modulate(base, example_input=X).summary().rows}
    assert "part" not in rows and rows["part.weight"].action == "skipped"


def test_square_weights_and_vectors() -> None:
    torch.manual_seed(0)
    base = nn.Sequential(Conv1D(6, 6), nn.Tanh(), Own(6, 6, F.linear), nn.Tanh(), nn.Linear(6, 4)).eval()
    x = torch.randn(3, 6)
    wf = modulate(base, example_input=x)
    assert {row.name: row.action for row in wf.summary().rows} == {"0": "gated", "2": "gated", "4": "skipped"}
    baked = check(base, wf, x)
    assert type(baked[0]) is Conv1D and type(baked[2]) is Own


def test_a_norm_behind_it() -> None:
    torch.manual_seed(0)
    base = Net(Conv1D(8, 6), norm=nn.LayerNorm(8))
    wf = modulate(base, example_input=X)
    assert {row.name: row.action for row in wf.summary().rows}["part"] == "gated behind"
    check(base, wf)


@pytest.mark.parametrize("make", [lambda: Conv1D(4, 8), lambda: Own(8, 4, F.linear)], ids=["Conv1D", "F.linear"])
def test_the_head(make) -> None:
    torch.manual_seed(0)
    base = Net(nn.Linear(6, 8), head=make())
    wf = modulate(base, example_input=X)
    rows = {row.name: (row.action, row.reason) for row in wf.summary().rows}
    assert wf.num_classes == 4 and rows["head"] == ("skipped", "the classifier head")
    check(base, wf)


def test_in_half_precision() -> None:
    torch.manual_seed(0)
    base, x = Net(Conv1D(8, 6)).bfloat16(), X.bfloat16()
    wf = modulate(base, example_input=x)
    assert {row.name: row.action for row in wf.summary().rows}["part"] == "gated"
    wf.verify(x)
    train(wf)
    torch.testing.assert_close(wf.bake(1)(x), wf(x, forget=1), rtol=0.05, atol=0.05)
