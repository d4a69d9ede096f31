"""Adapters (peft's LoRA) on a modulated model and the other way round: what they add is gated, merged or not."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from memmod import ModulateConfig, ModulatedConv2d, ModulatedModel, modulate
from memmod.errors import ModelError
from memmod.nn.modulated import Modulated
from memmod.surgery.random_weights import randomise
from memmod.surgery.replace import replace_module

X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CONV, LINEAR = ("conv1", "conv2"), ("qkv", "fc1")


class LoRA(nn.Module):
    """As peft's: the layer as `base_layer`, and what two layers of its type, the first of rank 2, make of its input."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        # Arguments by position, as peft has them.
        if isinstance(base_layer, nn.Conv2d):
            kernel = (base_layer.kernel_size, base_layer.stride, base_layer.padding)
            self.lora_A = type(base_layer)(base_layer.in_channels, 2, *kernel, bias=False)
            self.lora_B = type(base_layer)(2, base_layer.out_channels, (1, 1), (1, 1), bias=False)
        else:
            self.lora_A = nn.Linear(base_layer.in_features, 2, bias=False)
            self.lora_B = nn.Linear(2, base_layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))

    def merged(self) -> nn.Module:
        a, b = self.lora_A.weight, self.lora_B.weight
        delta = b @ a if a.dim() == 2 else torch.einsum("or,rihw->oihw", b[:, :, 0, 0], a)
        self.base_layer.weight.data += delta
        return self.base_layer


def adapt(model: nn.Module, targets: tuple[str, ...]) -> nn.Module:
    """Wrap the layers of these names in place, as peft does, and tell the model."""
    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] in targets or name.endswith(tuple(f".{t}" for t in targets)):
            assert isinstance(module, (nn.Linear, nn.Conv2d)), f"{name}: peft would not take a {type(module).__name__}"
            replace_module(model, module, LoRA(module))
    model.peft_config = {"default": targets}
    return model.eval()


def merge(model: nn.Module) -> nn.Module:
    """Take the adapters out again, as peft does: of whatever has a `base_layer`."""
    for name, module in list(model.named_modules()):
        if "lora_" not in name and hasattr(module, "base_layer"):
            replace_module(model, module, module.merged())
    return model


def resnet() -> nn.Module:
    torch.manual_seed(0)
    widths = {"stem_width": 8, "channels": (8, 8, 16, 16)}
    return randomise(ResNet(BasicBlock, (1, 1, 1, 1), num_classes=5, **widths)).eval()


def vit() -> nn.Module:
    torch.manual_seed(0)
    return randomise(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=5)).eval()


def train(wf: ModulatedModel) -> None:
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(torch.randn(memory.shape, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("build", "targets"),
    [(resnet, CONV), (vit, tuple(f"{name}.inner" for name in LINEAR))],
    ids=["resnet", "vit"],
)
def test_adapters_on_a_modulated_model(build, targets: tuple[str, ...]) -> None:
    base = build()
    wf = modulate(base, example_input=X, config=ModulateConfig(behind=True))
    train(wf)
    before, index = wf(X, forget=1), torch.tensor([0, 1, -1])
    torch.testing.assert_close(wf(X, forget=-1), base(X))
    adapt(wf, targets)
    wf.verify(X)
    adapted = {forget: wf(X, forget=forget) for forget in (-1, 1)}
    assert (adapted[1] - before).abs().max() > 1e-3
    wf(X, forget=index).square().sum().backward()
    adapters = [p for name, p in wf.named_parameters() if "lora_" in name]
    assert len(adapters) >= 4 and all(p.grad.any() for p in adapters)
    torch.testing.assert_close(wf.bake(1)(X), adapted[1])

    # Gates cover what the adapters add: merged into the weight it gives the same.
    merge(wf)
    assert not any(isinstance(module, LoRA) for module in wf.modules())
    for forget, expected in adapted.items():
        torch.testing.assert_close(wf(X, forget=forget), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(wf.bake(1)(X), adapted[1], rtol=1e-3, atol=1e-4)


def test_a_closed_unit_is_closed_for_its_adapter_too() -> None:
    wf = adapt(modulate(vit(), example_input=X, config=ModulateConfig(behind=True)), ("fc1.inner",))
    layer = wf.model.blocks[0].mlp.fc1
    with torch.no_grad():
        layer.memory[2] = -200.0
    x = torch.randn(3, 4, layer.inner.base_layer.in_features)
    assert not layer(x, torch.tensor([2, 2, 2])).any() and layer(x, torch.tensor([0, 0, 0])).any()


@pytest.mark.parametrize(("build", "targets"), [(resnet, CONV), (vit, LINEAR)], ids=["resnet", "vit"])
def test_a_model_with_adapters_is_modulated(build, targets: tuple[str, ...]) -> None:
    base = adapt(build(), targets)
    wf = modulate(base, example_input=X)
    rows = {row.name: row.action for row in wf.summary().rows}
    for part in ("base_layer", "lora_A", "lora_B"):
        assert {action for name, action in rows.items() if name.endswith(part)} == {"gated"}
    wf.verify(X)
    torch.testing.assert_close(wf(X, forget=-1), base(X), rtol=1e-4, atol=1e-4)
    train(wf)
    torch.testing.assert_close(wf.bake(1)(X), wf(X, forget=1), rtol=1e-4, atol=1e-4)
    assert torch.equal(wf.unload()(X), base(X))


def test_adapters_around_gates_are_refused() -> None:
    text = r"around blocks.0.attn.qkv.base_layer and 1 more .*ModulateConfig\(behind=True\)"
    with pytest.raises(ModelError, match=text):
        adapt(modulate(vit(), example_input=X), LINEAR)
    with pytest.raises(TypeError, match=r"num_classes is \(2, 2\); it must be an int.*behind=True"):
        adapt(modulate(resnet(), example_input=X), CONV)


def test_behind_leaves_every_layer_ordinary(tmp_path) -> None:
    base = resnet()
    wf = modulate(base, example_input=X, config=ModulateConfig(behind=True))
    assert {"folded", "fused"}.isdisjoint(row.action for row in wf.summary().rows)
    assert not any(isinstance(module, (ModulatedConv2d,)) for module in wf.modules())
    gated = {name for name, module in wf.model.named_modules() if isinstance(module, Modulated)}
    assert {"bn1", "layer1.0.bn1"} <= gated
    wf.save_memory(tmp_path / "m.safetensors")
    again = ModulatedModel.from_file(base, tmp_path / "m.safetensors")
    assert again.config.behind and torch.equal(again(X, forget=1), wf(X, forget=1))
    with pytest.raises(ValueError, match="behind=True"):
        ModulateConfig(behind=True, gate_bias=False)
