"""What training frameworks do to a model: attributes of their own, copies, processes, layers on several devices."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from memmod import ModulateConfig, modulate
from memmod.errors import SelectionError
from memmod.surgery.random_weights import randomise
from memmod.zoo import create_model


def small() -> nn.Module:
    return randomise(create_model("resnet", 10, (1, 8, 8)), 0).eval()


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


class Configured(nn.Module):
    """Reads its own `config`, `num_classes`, `state` and `input_shape` when it runs, as Hugging Face's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small()
        self.config = SimpleNamespace(scale=2.0)
        self.num_classes, self.state, self.input_shape, self.class_names = 3, "ready", (1, 8, 8), ("a", "b")

    def forward(self, x: Tensor) -> Tensor:
        assert (self.num_classes, self.state, self.input_shape, self.class_names) == (3, "ready", (1, 8, 8), ("a", "b"))
        return self.config.scale * self.net(x)


def test_attributes_of_the_base_with_names_of_the_wrappers_stay_the_bases() -> None:
    base = Configured().eval()
    wf = modulate(base, 10, images(), class_names=[f"digit {c}" for c in range(10)])
    torch.testing.assert_close(wf(images()), base(images()))
    assert wf.config == ModulateConfig() and wf.model.config.scale == 2.0
    assert wf.num_classes == 10 and wf.class_names[3] == "digit 3"
    assert not torch.equal(wf(images(), forget="digit 3"), wf(images()))
    again = copy.deepcopy(wf)
    torch.testing.assert_close(again(images(), forget=3), wf(images(), forget=3))
    assert again.config == wf.config and again.model.config.scale == 2.0
    torch.testing.assert_close(wf.unload()(images()), base(images()))


class OnTwoDevices(nn.Module):
    """Two layers, each of which may be on a device of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.to(self.first.weight.device)).relu()
        return self.head(self.second(x.to(self.second.weight.device)).to(self.head.weight.device))


@pytest.mark.parametrize("granularity", ["unit", "input", "unit+input"])
def test_each_layer_gets_the_selection_on_its_own_device(granularity: str) -> None:
    """A second device is stood in for by "meta", on which everything but the values can be computed."""
    x = torch.randn(4, 5)
    wf = modulate(OnTwoDevices(), 10, x, config=ModulateConfig(granularity=granularity))
    for part in (wf.model.second, wf.model.head):
        part.to("meta")
    seen = []
    wf.model.second.register_forward_hook(lambda _module, _args, y: seen.append(y.device.type))
    for forget in (3, [1, -1, {2, 3}, 4], torch.tensor([1, 2, 3, -1])):
        assert wf(x, forget=forget).shape == (4, 10)
    assert seen == ["meta"] * 3


class Loading:
    """Keeps a layer's parameters on the meta device, but while it is called (as accelerate's offloading does)."""

    def __init__(self, layer: nn.Module) -> None:
        self.kept = {name: parameter.data for name, parameter in layer.named_parameters(recurse=False)}
        self.trained = {name: parameter.requires_grad for name, parameter in layer.named_parameters(recurse=False)}
        layer.register_forward_pre_hook(lambda module, _args: self.put(module, self.kept))
        layer.register_forward_hook(lambda module, _args, _y: self.put(module, self.gone))
        self.gone = {name: value.to("meta") for name, value in self.kept.items()}
        self.put(layer, self.gone)

    def put(self, layer: nn.Module, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            setattr(layer, name, nn.Parameter(value, requires_grad=self.trained[name]))


@pytest.mark.parametrize("forget", [2, "2", {1, 2}, [1, -1, {2, 3}, 4], torch.tensor([1, 2, 3, -1])], ids=repr)
def test_memories_that_are_loaded_when_their_layer_is_called(forget) -> None:
    wf = modulate(small(), class_names=list("0123456789"))
    expected = wf(images(), forget=forget)
    for module in list(wf.model.modules()):
        if next(module.parameters(recurse=False), None) is not None:
            Loading(module)
    assert wf.device.type == "meta"
    assert torch.equal(wf(images(), forget=forget), expected)
    assert not torch.equal(expected, wf(images()))
    with wf.forgetting(forget):
        assert torch.equal(wf(images()), expected)


def test_a_model_on_the_meta_device_computes_shapes() -> None:
    wf = modulate(small()).to("meta")
    x = images().to("meta")
    tensors = torch.tensor([1, 2, 3, -1]), torch.zeros(4, dtype=torch.int64, device="meta")
    for forget in (2, {1, 2}, [1, -1, 2, 3], *tensors):
        assert wf(x, forget=forget).shape == (4, 10)
    with pytest.raises(SelectionError, match="for 3 samples"):
        wf(x, forget=[1, 2, 3])
