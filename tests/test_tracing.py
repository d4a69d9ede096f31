"""torch.fx and torch.jit: gates are kept, or tracing is refused."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torch.fx import symbolic_trace
from torchvision.models.feature_extraction import create_feature_extractor

from memmod import ModulateConfig, ModulatedLinear, ModulatedModel, ModulatedMultiheadAttention, modulate
from memmod.errors import ModelError
from memmod.surgery.random_weights import randomise
from memmod.zoo import create_model


def modulated(base: nn.Module, shape: tuple[int, ...], **options) -> ModulatedModel:
    wf = modulate(randomise(base).eval(), example_input=torch.randn(2, *shape), config=ModulateConfig(**options))
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(torch.randn(memory.shape))
    return wf


# name, how to build it, a part of it that is called as a module
CASES = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), "layer3.0"),
    "swin_t": (lambda: torchvision.models.swin_t(num_classes=10), "features.3.1"),
    "vit_b_16": (lambda: torchvision.models.vit_b_16(num_classes=10, image_size=64), "encoder.layers.encoder_layer_1"),
    "efficientnet_b0": (lambda: torchvision.models.efficientnet_b0(num_classes=10), "features.2.1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_feature_extractors_keep_the_gates(name: str) -> None:
    build, part = CASES[name]
    wf = modulated(build(), (3, 64, 64))
    extract, x = create_feature_extractor(wf.model, [part]), torch.randn(3, 3, 64, 64)
    expected = []
    hook = wf.model.get_submodule(part).register_forward_hook(lambda m, args, out: expected.append(out))
    selections = (None, 3, [1, -1, {2, 4}])
    with torch.no_grad():
        for forget in selections:
            wf(x, forget=forget)
        hook.remove()
        for forget, want in zip(selections, expected, strict=True):
            with wf.forgetting(forget):
                assert torch.equal(extract(x)[part], want)
    assert not torch.equal(expected[0], expected[1])
    with pytest.raises(ModelError, match="trace wf.model, which keeps its gates"):
        create_feature_extractor(wf, [part])


@pytest.mark.parametrize("granularity", ["unit", "unit+input"])
@pytest.mark.parametrize("fold", [True, False])
def test_symbolic_traces_keep_the_gates(granularity: str, fold: bool) -> None:
    wf = modulated(create_model("resnet", 10, (1, 8, 8)), (1, 8, 8), granularity=granularity, fold=fold)
    traced, x = symbolic_trace(wf.model), torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        for forget in (None, 3, [1, -1, {2, 4}]):
            with wf.forgetting(forget):
                assert torch.equal(traced(x), wf(x))
    with wf.forgetting(3):
        traced(x).sum().backward()
    assert all(memory.grad[3].any() for memory in wf.memory_parameters())
    assert not torch.equal(wf(x, forget=3), wf(x))


class PerSample(nn.Module):
    """Takes the selection as an input."""

    def __init__(self, wf: ModulatedModel) -> None:
        super().__init__()
        self.wf = wf

    def forward(self, x, index):
        return self.wf(x, forget=index)


class Doubled(nn.Module):
    """Calls a modulated model with a selection of its own."""

    def __init__(self, wf: ModulatedModel) -> None:
        super().__init__()
        self.wf = wf

    def forward(self, x, index):
        return 2 * self.wf(x, forget=3) + self.wf(x) + self.wf(x, forget=index)


def test_a_traced_call_of_a_model_keeps_its_selection() -> None:
    wf = modulated(create_model("resnet", 10, (1, 8, 8)), (1, 8, 8))
    whole, x, index = Doubled(wf), torch.randn(3, 1, 8, 8), torch.tensor([1, -1, 4])
    traced = symbolic_trace(whole)
    with torch.no_grad():
        assert torch.equal(traced(x, index), whole(x, index))
        with wf.forgetting(5):
            assert torch.equal(traced(x, index), whole(x, index))


def test_traced_layers_take_an_index() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = ModulatedLinear(8, 8, 5)
            self.attention = ModulatedMultiheadAttention(8, 2, 5, batch_first=True)

        def forward(self, x, index):
            x = self.linear(x, index)
            return self.attention(x, x, x, need_weights=False, index=index)[0]

    layers, x, index = Layers(), torch.randn(2, 3, 8), torch.tensor([1, -1])
    with torch.no_grad():
        assert torch.equal(symbolic_trace(layers)(x, index), layers(x, index))
        assert not torch.equal(layers(x, index), layers(x, index.flip(0)))


def test_jit_traces_keep_no_selection_for_good() -> None:
    wf, x = modulated(create_model("resnet", 10, (1, 8, 8)), (1, 8, 8)), torch.randn(3, 1, 8, 8)
    for call in (wf, lambda x: wf(x, forget=3), lambda x: wf(x, forget=-1)):
        with pytest.raises(ModelError, match="torch.jit.trace would keep the selection"):
            torch.jit.trace(call, x)
    index, whole = torch.tensor([1, -1, 4]), PerSample(wf)
    # Gradients, for which layers keep more, are off in the second of the two traces that it compares.
    with torch.no_grad():
        traced = torch.jit.trace(whole, (x, index))
    torch.testing.assert_close(traced(x, index.flip(0)), whole(x, index.flip(0)))


def test_exports_keep_no_scope_for_good() -> None:
    wf, x = modulated(create_model("vit", 10, (1, 8, 8)), (1, 8, 8)), torch.randn(3, 1, 8, 8)

    class Scoped(nn.Module):
        """Opens a scope of its own, whose selection is an input."""

        def __init__(self) -> None:
            super().__init__()
            self.wf = wf

        def forward(self, x, index):
            with self.wf.forgetting(index):
                return self.wf(x)

    index = torch.tensor([1, -1, 4])
    with torch.no_grad():
        with wf.forgetting(3), pytest.raises(ModelError, match="keep the selection of the scope that is open for good"):
            torch.export.export(wf, (x,))
        program = torch.export.export(Scoped(), (x, index)).module()
        torch.testing.assert_close(program(x, index.flip(0)), wf(x, forget=index.flip(0)))


@pytest.mark.parametrize(
    "build", [lambda wf: wf, lambda wf: wf.model, lambda wf: nn.Sequential(ModulatedLinear(8, 8, 5))]
)
def test_scripts_are_refused_in_words(build) -> None:
    wf = modulated(create_model("vit", 10, (1, 8, 8)), (1, 8, 8))
    with pytest.raises(ModelError, match="torch.jit.script cannot compile Modulated(Conv2d|Linear)"):
        torch.jit.script(build(wf))
    torch.testing.assert_close(wf(torch.ones(2, 1, 8, 8), forget=3), wf(torch.ones(2, 1, 8, 8), forget=[3, 3]))
