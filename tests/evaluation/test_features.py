"""Feature points of the networks that people bring, and what is taken at them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from memmod.errors import ModelError
from memmod.evaluation.features import feature_points, features, head_name, unwrapped
from memmod.model import modulate
from memmod.zoo import create_model
from tests.unlearning.problem import split, trained_base


class Wrapper(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).index_fill(1, torch.tensor([1]), -torch.inf)


class Normalised(Wrapper):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x / 2)


def images(size: int, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


SMALL = {
    "resnet": (28, ("stem", "blocks.0", "blocks.1", "blocks.2", "penultimate"), 64, "fc"),
    "vgg": (28, ("features.5", "features.12", "features.19", "penultimate"), 96, "fc"),
    "vit": (28, (*(f"blocks.{i}" for i in range(5)), "penultimate"), 96, "head"),
}
TIMM = {
    "resnet18": (64, ("act1", "layer1", "layer2", "layer3", "layer4", "penultimate")),
    "convnext_atto": (64, ("stages.0", "stages.1", "stages.2", "stages.3", "penultimate")),
    "vit_tiny_patch16_224": (224, (*(f"blocks.{i}" for i in range(12)), "penultimate")),
    "mobilenetv3_small_050": (64, ("blocks.0", "blocks.5", "penultimate")),
}
TORCHVISION = {
    "resnet18": ("layer1", "layer2", "layer3", "layer4", "penultimate"),
    "vgg11": ("features.1", "features.4", "features.9", "features.14", "features.19", "penultimate"),
    "mobilenet_v3_small": (*(f"features.{i}" for i in range(13)), "penultimate"),
    "densenet121": ("features.relu0", "features.denseblock1", "features.denseblock4", "penultimate"),
    "vit_b_16": (*(f"encoder.layers.encoder_layer_{i}" for i in range(12)), "penultimate"),
    "regnet_x_400mf": ("stem", *(f"trunk_output.block{i}" for i in (1, 2, 3, 4)), "penultimate"),
    "swin_t": (*(f"features.{i}" for i in range(8)), "penultimate"),
}


@pytest.mark.parametrize("name", SMALL)
def test_points_of_the_zoo(name):
    size, points, width, head = SMALL[name]
    network = create_model(name, 10, (1, size, size)).eval()
    x = images(size, 1)
    assert feature_points(network, x) == points
    assert head_name(network, x) == head


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_points_of_timm(name):
    size, points = TIMM[name]
    network = create_model(f"timm:{name}", 7, (3, size, size)).eval()
    found = feature_points(network, images(size))
    assert set(points) <= set(found) and found[-1] == "penultimate"
    assert len(found) == len(points) or name.startswith("mobilenet")


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_points_of_torchvision(name):
    import torchvision

    size = 224 if name == "vit_b_16" else 64
    network = torchvision.models.get_model(name, num_classes=7).eval()
    found = feature_points(network, images(size))
    assert [point for point in found if point in TORCHVISION[name]] == list(TORCHVISION[name])
    assert len(found) == len(TORCHVISION[name]) or name == "densenet121"


def test_a_network_without_blocks_has_its_penultimate_features():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    assert feature_points(network, images(8, 1)) == ("penultimate",)
    found = features(network, split(3, 1))
    x = split(3, 1).batch(torch.arange(12))
    torch.testing.assert_close(found["penultimate"], network[:3](x))


def test_features_are_those_of_the_modules():
    network, data = trained_base(), split(3, 1)
    x = data.batch(torch.arange(12))
    found = features(network, data)
    assert tuple(found) == ("features.5", "penultimate")
    with torch.no_grad():
        torch.testing.assert_close(found["features.5"], network.features[:6](x).mean((2, 3)))
        torch.testing.assert_close(found["penultimate"], network.features(x))
    assert all(f.dtype == torch.float32 and f.device.type == "cpu" for f in found.values())
    numbers = torch.tensor([7, 2, 5])
    few = features(network, data, ["features.5"], batch_size=2, indices=numbers)
    assert tuple(few) == ("features.5",)
    torch.testing.assert_close(few["features.5"], found["features.5"][numbers])


def test_an_output_that_is_written_over_later_is_taken_before():
    network, data = create_model("resnet", 10, (1, 8, 8)).eval(), split(3, 1)
    found = features(network, data, ["blocks.0.bn2"])
    out = []
    handle = network.blocks[0].bn2.register_forward_hook(lambda _m, _a, y: out.append(y.clone()))
    network(data.batch(torch.arange(12)))
    handle.remove()
    torch.testing.assert_close(found["blocks.0.bn2"], out[0].mean((2, 3)))


def test_of_tokens_the_class_token_is_taken():
    network, data = create_model("vit", 10, (1, 8, 8)).eval(), split(3, 1)
    x = data.batch(torch.arange(12))
    found = features(network, data, ["blocks.3", "penultimate"])
    with torch.no_grad():
        torch.testing.assert_close(network.norm(found["blocks.3"]), found["penultimate"])
        torch.testing.assert_close(network.head(found["penultimate"]), network(x))
    network.cls_token = None
    network.forward = lambda x: network.head(network.blocks(network.patch_embed(x)).mean(1))
    with torch.no_grad():
        tokens = network.blocks(network.patch_embed(x))
    torch.testing.assert_close(features(network, data, ["blocks.3"])["blocks.3"], tokens.mean(1))


def test_maps_with_channels_last_are_averaged_over_positions():
    import torchvision

    network = torchvision.models.swin_t(num_classes=3).eval()
    x = images(64)
    data = split(1, 1)
    data.batch = lambda indices: x[indices % 2]
    found = features(network, data, ["features.1"], indices=torch.tensor([0, 1]))
    with torch.no_grad():
        torch.testing.assert_close(found["features.1"], network.features[:2](x).mean((1, 2)))


def test_a_wrapper_has_the_points_and_features_of_the_network_within():
    network, data = trained_base(), split(3, 1)
    x = data.batch(torch.arange(2))
    wrapped = Wrapper(Wrapper(network)).eval()
    assert unwrapped(wrapped, x) is network
    assert feature_points(wrapped, x) == feature_points(network, x)
    own, theirs = features(wrapped, data), features(network, data)
    assert all(torch.equal(own[point], theirs[point]) for point in theirs)
    compiled = torch.compile(wrapped)
    assert unwrapped(compiled, x) is network


def test_what_changes_the_images_is_no_wrapper():
    network, x = Normalised(trained_base()).eval(), split(1, 1).batch(torch.arange(2))
    assert unwrapped(network, x) is network
    assert unwrapped(trained_base(), x) is trained_base()
    assert feature_points(network, x)[-1] == "penultimate"


def test_a_baked_network_has_the_points_of_its_base():
    x = split(1, 1).batch(torch.arange(2))
    for name in ("resnet", "vgg"):
        network = create_model(name, 10, (1, 8, 8)).eval()
        wf = modulate(network, 10, x)
        assert feature_points(wf.bake(3), x) == feature_points(network, x)


def test_a_network_is_left_as_it_was():
    network, data = create_model("resnet", 10, (1, 8, 8)), split(3, 1)
    network.train()
    network.blocks[1].eval()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    features(network, data)
    with pytest.raises(ModelError, match="has no module 'blocks.9'"):
        features(network, data, ["blocks.9"])
    with pytest.raises(IndexError):
        features(network, data, ["stem"], indices=torch.tensor([99]))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert modes == [module.training for module in network.modules()]
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_a_module_that_does_not_run():
    network = create_model("resnet", 10, (1, 8, 8)).eval()
    network.spare = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="'spare' does not run"):
        features(network, split(3, 1), ["spare"])
