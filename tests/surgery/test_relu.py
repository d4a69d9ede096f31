"""ReLUs that layers apply themselves: which ones, that nothing else changes, and that they come back."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from captum.attr import DeepLift
from torch import Tensor, nn

from memmod import ModulateConfig, modulate
from memmod.surgery.random_weights import randomise
from memmod.surgery.relu import FusedReLU
from tests.surgery.test_modify import X, actions, check


class Net(nn.Module):
    """conv, ReLU and a head; `body` says how they are put together."""

    def __init__(self, body, relu: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = relu or nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 5)
        randomise(self)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self, x).mean((2, 3)))


def changed_in_place(net: Net, x: Tensor) -> Tensor:
    y = net.relu(net.conv(x))
    with torch.no_grad():
        y.add_(x)
    return y


FUSED = {
    "conv, relu": lambda net, x: net.relu(net.conv(x)),
    "conv, bn, relu": lambda net, x: net.relu(net.bn(net.conv(x))),
    "through Identity": lambda net, x: net.relu(nn.Identity()(net.conv(x))) * 2 + x,
}
LEFT = {
    "relu twice": lambda net, x: net.relu(net.relu(net.conv(x)) - x),
    "conv twice": lambda net, x: net.relu(net.conv(net.conv(x))),
    "read before": lambda net, x: (lambda y: y.mean((1, 2, 3), keepdim=True) + net.relu(y))(net.conv(x)),
    "read after": lambda net, x: (lambda y: net.relu(y.clone()) + y)(net.conv(x)),
    "a shortcut between": lambda net, x: net.relu(net.conv(x) + x),
    "functional": lambda net, x: torch.relu(net.conv(x)),
}


@pytest.mark.parametrize("body", FUSED.values(), ids=FUSED.keys())
@pytest.mark.parametrize("inplace", [True, False])
def test_fuses(body, inplace) -> None:
    base = Net(body, nn.ReLU(inplace))
    wf = modulate(base, example_input=X)
    assert actions(wf)["relu"] == "fused"
    assert type(wf.model.relu) is FusedReLU and wf.model.conv.activation == "relu"
    check(base, wf)
    baked = wf.bake(2)
    assert type(baked.relu) is nn.ReLU and baked.relu.inplace is inplace
    assert type(wf.unload().relu) is nn.ReLU
    assert torch.equal(wf.unload()(X), base(X))


@pytest.mark.parametrize("body", LEFT.values(), ids=LEFT.keys())
def test_leaves(body) -> None:
    base = Net(body, nn.ReLU())
    wf = modulate(base, example_input=X)
    assert "fused" not in actions(wf).values()
    check(base, wf)


def test_leaves_a_relu_that_is_changed_in_place() -> None:
    base = Net(changed_in_place, nn.ReLU())
    wf = modulate(base, example_input=X)
    assert "fused" not in actions(wf).values()


@pytest.mark.parametrize(
    "config",
    [
        ModulateConfig(gate="identity"),
        ModulateConfig(gate_bias=False),
        ModulateConfig(granularity="input"),
    ],
    ids=str,
)
def test_leaves_a_layer_whose_output_is_not_enough(config) -> None:
    base = Net(FUSED["conv, relu"])
    wf = modulate(base, example_input=X, config=config)
    assert "fused" not in actions(wf).values()
    torch.testing.assert_close(wf(X, forget=-1), base(X), rtol=1e-4, atol=1e-5)


def test_a_hook_on_a_relu_keeps_it() -> None:
    base, seen = Net(FUSED["conv, relu"]), []
    base.relu.register_forward_hook(lambda *args: seen.append(args))
    assert "fused" not in actions(modulate(base, example_input=X)).values()
    assert seen


def test_gradients_equal_those_of_a_relu_behind() -> None:
    base = Net(FUSED["conv, bn, relu"])
    wf = modulate(base, example_input=X)
    behind = copy.deepcopy(wf)
    behind.model.relu, behind.model.conv.activation = nn.ReLU(), None
    index = torch.tensor([0, 3, -1])
    for model in (wf, behind):
        model(X, forget=index).square().sum().backward()
    for a, b in zip(wf.memory_parameters(), behind.memory_parameters(), strict=True):
        assert torch.equal(a.grad, b.grad) and a.grad.any()


def test_batch_statistics_come_before_the_relu() -> None:
    base = Net(FUSED["conv, bn, relu"])
    wf = modulate(base, example_input=X)
    unfolded = modulate(base, example_input=X, config=ModulateConfig(fold=False))
    with torch.no_grad(), wf.batch_statistics(), unfolded.batch_statistics():
        torch.testing.assert_close(wf(X, forget=-1), unfolded(X, forget=-1), rtol=1e-3, atol=1e-4)


def test_nothing_is_fused_where_it_is_not_wanted() -> None:
    base = Net(FUSED["conv, bn, relu"])
    wf = modulate(base, example_input=X, config=ModulateConfig(fuse=False))
    assert "relu" not in actions(wf)
    assert type(wf.model.relu) is nn.ReLU and wf.model.conv.activation is None
    check(base, wf)
    fused = modulate(base, example_input=X)
    fused.load_memory_state(wf.memory_state())
    index = torch.tensor([0, 3, -1])
    torch.testing.assert_close(fused(X, forget=index), wf(X, forget=index))


@pytest.mark.parametrize("fuse", [True, False])
def test_what_hooks_into_activations_needs_them_unfused(fuse: bool) -> None:
    # DeepLift replaces the gradient of every nn.ReLU; of one that a layer applies it gets the ordinary one.
    base = Net(lambda net, x: net.relu(net.bn(net.conv(x))), nn.ReLU())
    wf = modulate(base, example_input=X, config=ModulateConfig(fuse=fuse))
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(torch.randn(memory.shape, generator=torch.Generator().manual_seed(0)))
    x, target, baseline = X.clone().requires_grad_(), torch.tensor([0, 3, 1]), torch.zeros_like(X)
    with wf.forgetting(1):
        found = DeepLift(wf.model).attribute(x, baseline, target=target)
    expected = DeepLift(wf.bake(1)).attribute(x, baseline, target=target)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item()) != fuse


def test_resnet_keeps_one_output_a_fused_layer_and_pickles() -> None:
    base = randomise(timm.create_model("resnet18", num_classes=5)).eval()
    x = torch.randn(2, 3, 32, 32)
    wf = modulate(base, example_input=x)
    fused = [name for name, action in actions(wf).items() if action == "fused"]
    assert fused == ["act1", *(f"layer{i}.{j}.act1" for i in (1, 2, 3, 4) for j in (0, 1))]
    twin = pickle.loads(pickle.dumps(wf))
    index = torch.tensor([1, -1])
    assert torch.equal(twin(x, forget=index), wf(x, forget=index))
