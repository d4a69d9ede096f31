"""Weights outside of registered layers are listed with the true reason; layers that share a weight are gated."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memmod import modulate
from memmod.files.state_hash import state_sha256
from memmod.surgery.random_weights import randomise

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A linear layer, what `use` does with `part`, and a head; `keep` says how the part is kept."""

    def __init__(self, keep, use) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.use = use
        keep(self)
        randomise(self).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.use(self, self.first(x).relu()))


def weight() -> nn.Parameter:
    return nn.Parameter(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))


def keeping(**values):
    return lambda net: [setattr(net, name, make()) for name, make in values.items()]


def hide(net: Net) -> None:
    layer = nn.Linear(6, 6)
    net.hidden = lambda x: layer(x)


LIST = "kept in a plain list (layers), so it is not registered: use nn.ModuleList"
LOOSE = "a weight that {} reads without a layer"
w = keeping(w=weight)
CASES = {
    "list": (
        keeping(layers=lambda: [nn.Linear(6, 6), nn.Linear(6, 6)]),
        lambda net, x: net.layers[1](net.layers[0](x)),
        {"layers[0]": LIST, "layers[1]": LIST},
    ),
    "list of blocks": (
        keeping(layers=lambda: [nn.Sequential(nn.Linear(6, 6), nn.ReLU())]),
        lambda net, x: net.layers[0](x),
        {"layers[0].0": LIST},
    ),
    "list of Conv1d": (
        keeping(layers=lambda: [nn.Conv1d(6, 6, 1)]),
        lambda net, x: net.layers[0](x[..., None])[..., 0],
        {"layers[0]": LIST},
    ),
    "tuple": (
        keeping(layers=lambda: (nn.Linear(6, 6),)),
        lambda net, x: net.layers[0](x),
        {"layers[0]": "kept in a plain tuple"},
    ),
    "dict": (
        keeping(layers=lambda: {"a": nn.Linear(6, 6)}),
        lambda net, x: net.layers["a"](x),
        {"layers['a']": "use nn.ModuleDict"},
    ),
    "nested": (
        keeping(layers=lambda: {"a": [nn.Linear(6, 6)]}),
        lambda net, x: net.layers["a"][0](x),
        {"layers['a'][0]": "kept in a plain dict"},
    ),
    "object": (
        keeping(holder=lambda: SimpleNamespace(layer=nn.Linear(6, 6))),
        lambda net, x: net.holder.layer(x),
        {"holder.layer": "kept in a plain SimpleNamespace"},
    ),
    "parameters": (
        keeping(weights=lambda: [weight()]),
        lambda net, x: F.linear(x, net.weights[0]),
        {"weights[0]": "use nn.ParameterList"},
    ),
    "closure": (hide, lambda net, x: net.hidden(x), {"<linear in the model>": "the model does not hold"}),
    "@": (w, lambda net, x: x @ net.w, {"w": LOOSE.format("matmul")}),
    "@ on the left": (w, lambda net, x: (net.w @ x.T).T, {"w": LOOSE.format("matmul")}),
    "transposed": (w, lambda net, x: torch.matmul(x, net.w.t()), {"w": LOOSE.format("matmul")}),
    "einsum": (w, lambda net, x: torch.einsum("bi,oi->bo", x, net.w), {"w": LOOSE.format("einsum")}),
    "mm": (w, lambda net, x: x.mm(net.w), {"w": LOOSE.format("mm")}),
    "addmm": (w, lambda net, x: torch.addmm(x, x, net.w), {"w": LOOSE.format("addmm")}),
    "bmm": (w, lambda net, x: torch.bmm(x[None], net.w[None])[0], {"w": LOOSE.format("bmm")}),
    "baddbmm": (
        w,
        lambda net, x: torch.baddbmm(x[None], x[None], net.w[None])[0],
        {"w": LOOSE.format("baddbmm")},
    ),
    "scaled": (w, lambda net, x: F.linear(x, 0.5 * net.w), {"w": LOOSE.format("linear")}),
    "product of two": (
        keeping(a=weight, b=weight),
        lambda net, x: F.linear(x, net.a @ net.b),
        {"a": LOOSE.format("linear"), "b": LOOSE.format("linear")},
    ),
    "conv": (
        keeping(w=lambda: nn.Parameter(torch.randn(6, 6, 1))),
        lambda net, x: F.conv1d(x[..., None], net.w)[..., 0],
        {"w": LOOSE.format("conv1d")},
    ),
    "recurrent": (
        keeping(rnn=lambda: nn.LSTM(6, 6, batch_first=True), cell=lambda: nn.GRUCell(6, 6)),
        lambda net, x: net.cell(net.rnn(x[:, None])[0][:, 0]),
        {"rnn": "LSTM is not supported", "cell": "GRUCell is not supported"},
    ),
    "a layer's own": (
        keeping(layer=lambda: nn.Linear(6, 6)),
        lambda net, x: x @ net.layer.weight,
        {"layer": "its weight is read without calling it (matmul in the model)"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_without_a_layer_are_listed(case: str) -> None:
    keep, use, expected = CASES[case]
    base = Net(keep, use)
    wf = modulate(base, example_input=X)
    rows = {row.name: row for row in wf.summary().rows}
    assert set(rows) == {"first", "head", *expected}
    for name, text in expected.items():
        assert rows[name].action == "skipped" and text in rows[name].reason
    wf.verify(X)
    torch.testing.assert_close(wf(X), base(X))


@pytest.mark.parametrize(
    ("keep", "use", "others"),
    [
        (lambda net: net.register_buffer("fixed", torch.randn(6, 6)), lambda net, x: x @ net.fixed, set()),
        (
            keeping(table=lambda: nn.Embedding(4, 6)),
            lambda net, x: x + net.table(torch.zeros(3, dtype=torch.int64)),
            {"table"},
        ),
        (keeping(scale=lambda: nn.Parameter(torch.rand(1, 6))), lambda net, x: x * net.scale, {"scale"}),
        (keeping(layers=lambda: [nn.Linear(6, 6)]), lambda net, x: x, set()),
        (lambda net: setattr(net, "again", [net.first]), lambda net, x: net.again[0](x), set()),
        (lambda net: None, lambda net, x: (x[:, :, None] @ x[:, None]).sum(2), set()),
    ],
    ids=["buffer", "embedding", "scale", "unused list", "list of registered ones", "activations"],
)
def test_what_is_no_loose_weight(keep, use, others) -> None:
    wf = modulate(Net(keep, use), example_input=X)
    rows = {row.name: row.reason for row in wf.summary().rows}
    assert rows.keys() == {"first", "head", *others}
    assert not any("a weight" in rows[name] for name in others)


def tie(*names: str):
    def keep(net: Net) -> None:
        net.second = nn.Linear(6, 6)
        for name in names:
            net.get_submodule(name).weight = net.first.weight

    return keep


def check_tied(base: nn.Module) -> dict[str, str]:
    wf = modulate(base, example_input=X)
    wf.verify(X)
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(torch.randn(memory.shape, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(wf(X, forget=-1), base(X))
    baked = wf.bake(1)
    torch.testing.assert_close(baked(X), wf(X, forget=1))
    back = wf.unload()
    assert back.second.weight is back.first.weight and state_sha256(back) == wf.base_sha256
    assert torch.equal(back(X), base(X))
    return {row.name: (row.action, row.reason) for row in wf.summary().rows}


def test_layers_that_share_a_weight_gate_their_own_outputs() -> None:
    base = Net(tie("second"), lambda net, x: net.second(x).relu())
    assert base.second.weight is base.first.weight
    rows = check_tied(base)
    assert rows["first"] == ("gated", "shares its weight with second")
    assert rows["second"] == ("gated", "shares its weight with first")
    wf = modulate(base, example_input=X)
    with torch.no_grad():
        wf.model.second.memory.fill_(-40.0)
        wf.model.first.memory.fill_(40.0)
    baked = wf.bake(0)
    assert baked.second.weight.abs().max() < 1e-12
    torch.testing.assert_close(baked.first.weight, base.first.weight)


def test_a_head_that_shares_the_weight_of_a_layer_stays_the_head() -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    base[2].weight = base[0].weight
    wf = modulate(base, example_input=X)
    assert {row.name: row.action for row in wf.summary().rows} == {"0": "gated", "1": "fused", "2": "skipped"}
    wf.verify(X)
    torch.testing.assert_close(wf.bake(2)(X), wf(X, forget=2))


def test_an_embedding_that_shares_the_weight_of_a_layer() -> None:
    def keep(net: Net) -> None:
        net.table = nn.Embedding(6, 6)
        net.table.weight = net.first.weight

    base = Net(keep, lambda net, x: x + net.table(torch.zeros(3, dtype=torch.int64)))
    wf = modulate(base, example_input=X)
    assert ("first", "gated") in {(row.name, row.action) for row in wf.summary().rows}
    wf.verify(X)
    torch.testing.assert_close(wf.bake(1)(X), wf(X, forget=1))


def test_a_shared_weight_that_a_function_reads_is_refused() -> None:
    base = Net(tie("second"), lambda net, x: net.second(F.linear(x, net.first.weight)))
    rows = {row.name: row for row in modulate(Net(tie(), lambda net, x: net.second(x)), example_input=X).summary().rows}
    assert rows["first"].action == rows["second"].action == "gated"
    with pytest.raises(ValueError, match=r"its weight is read without calling it \(linear in the model\)"):
        modulate(base, example_input=X)


def test_a_warning_where_most_weights_stay(caplog) -> None:
    few = Net(keeping(layers=lambda: [nn.Linear(6, 6), nn.Linear(6, 6)]), CASES["list"][1])
    many = Net(lambda net: None, lambda net, x: x)
    with caplog.at_level(logging.WARNING):
        modulate(many, example_input=X)
        assert not caplog.records
        modulate(few, example_input=X)
    assert "only 33.3 % of the linear and conv weights of Net are gated" in caplog.text
