"""Layers whose output does not reach the logits are left alone, with the reason; what only looks like it is gated."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memmod import ModulatedModel, modulate
from memmod.errors import ModelError
from memmod.surgery.plan import IDLE
from memmod.surgery.random_weights import randomise

X = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))


class Detached(torch.autograd.Function):
    """Passes its input on, and no gradient back."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> None:
        return None


class Failing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> None:
        raise NotImplementedError("no backward")


class Net(nn.Module):
    """A stem, what `use` does with `part` on ``[B, 5, 6]``, and a head on the mean of the tokens."""

    def __init__(self, use, part: nn.Module) -> None:
        super().__init__()
        self.use = use
        self.stem = nn.Linear(6, 6)
        self.part = part
        self.head = nn.Linear(6, 4)
        randomise(self).eval()

    def forward(self, x: Tensor):
        return self.head(self.use(self, self.stem(x)).mean(1))


class Pool(nn.Module):
    """Attention pooling with a learned query, as in SigLIP; what it returns may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, 6))
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.attention(self.probe.repeat(len(x), 1, 1), x, x)[0])


class Last(nn.Module):
    """One token is read of its attention, as in CvT: the queries that a convolution makes of the others are dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv2d(6, 6, 1)
        self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first, others = x[:, :1], self.line(x[:, 1:].mT.unsqueeze(-1)).squeeze(-1).mT
        q, k, v = self.query(torch.cat((first, others), 1)), self.key(x), self.value(x)
        return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0, :1]


def beside(net: Net, x: Tensor) -> Tensor:
    net.part(x)
    return x


def multiplied_by_zero(net: Net, x: Tensor) -> Tensor:
    return x + net.part(x) * torch.zeros(6)


IDLE_CASES = {
    "a layer beside": (beside, lambda: nn.Linear(6, 6), {"part"}),
    "two in a row": (
        beside,
        lambda: nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6)),
        {"part.0", "part.2"},
    ),
    "a pooling head beside": (beside, Pool, {"part.attention.in_proj", "part.attention.out_proj", "part.fc"}),
    "queries of dropped tokens": (lambda net, x: net.part(x), Last, {"part.line"}),
    "tokens that are dropped": (
        lambda net, x: torch.cat((x[:, :1], net.part(x[:, 1:])), 1)[:, :1],
        lambda: nn.Linear(6, 6),
        {"part"},
    ),
    "only its shape is read": (
        lambda net, x: x * net.part(x).shape[-1],
        lambda: nn.Linear(6, 6),
        {"part"},
    ),
}
ACTING_CASES = {
    "used": (lambda net, x: net.part(x), lambda: nn.Linear(6, 6)),
    "scaled by zero": (multiplied_by_zero, lambda: nn.Linear(6, 6)),
    "all units closed": (lambda net, x: x + F.relu(net.part(x) - 100), lambda: nn.Linear(6, 6)),
    "without a gradient": (lambda net, x: x + net.part(x).detach(), lambda: nn.Linear(6, 6)),
    "no gradient of its own": (lambda net, x: x + Detached.apply(net.part(x)), lambda: nn.Linear(6, 6)),
    "a backward that fails": (lambda net, x: Failing.apply(net.part(x)), lambda: nn.Linear(6, 6)),
    "chooses tokens": (
        lambda net, x: x.take_along_dim(net.part(x).sum(-1, keepdim=True).argsort(1)[:, :2], 1),
        lambda: nn.Linear(6, 6),
    ),
    "a pooling head that is used": (lambda net, x: net.part(x), Pool),
}


def rows(wf: ModulatedModel) -> dict[str, str]:
    return {row.name: row.reason for row in wf.summary().rows}


@pytest.mark.parametrize("case", IDLE_CASES)
def test_without_effect(case: str, caplog) -> None:
    use, make, idle = IDLE_CASES[case]
    torch.manual_seed(0)
    base = Net(use, make())
    wf = modulate(base, example_input=X)
    assert {name for name, reason in rows(wf).items() if reason == IDLE} == idle
    assert not idle & {name.rpartition(".")[0] for name, _ in wf.named_memories()}
    wf.verify(X)
    torch.testing.assert_close(wf(X, forget=-1), base(X))
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(torch.randn(memory.shape, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(wf.bake(1)(X), wf(X, forget=1))
    # Weights that nothing depends on are no cause for a warning.
    assert not caplog.records


@pytest.mark.parametrize("case", ACTING_CASES)
def test_with_effect(case: str) -> None:
    use, make = ACTING_CASES[case]
    torch.manual_seed(0)
    wf = modulate(Net(use, make()), example_input=X)
    assert IDLE not in rows(wf).values()
    assert any(name.startswith("part") for name, _ in wf.named_memories())


def test_closed_for_now_is_not_without_effect() -> None:
    # An untrained network: the last norm of each block and the head are zero.
    base = Net(lambda net, x: x + net.part(x), nn.Linear(6, 6))
    nn.init.zeros_(base.head.weight)
    wf = modulate(base, example_input=X)
    assert IDLE not in rows(wf).values()
    with pytest.raises(ModelError, match="leaves its logits unchanged"):
        wf.verify(X)


def test_a_file_decides_what_is_gated(tmp_path) -> None:
    base = Net(lambda net, x: net.part(x), nn.Linear(6, 6))
    wf = modulate(base, example_input=X)
    wf.save_memory(tmp_path / "m.safetensors")
    base.use = beside
    assert {name for name, _ in ModulatedModel.from_file(base, tmp_path / "m.safetensors").named_memories()} == {
        "stem.memory",
        "part.memory",
    }
