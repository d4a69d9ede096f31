"""timm's `features_only=True` models, which return maps and have no classifier: gated, verified and baked."""

from __future__ import annotations

import pytest
import timm
import torch

from memmod import ModulateConfig, modulate
from memmod.surgery.random_weights import randomise


@pytest.mark.parametrize(
    ("name", "options", "output"),
    [
        ("test_resnet", {}, "4"),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 3}, "2"),
        ("test_convnext", {}, "3"),
    ],
)
def test_maps_are_gated(name: str, options: dict, output: str) -> None:
    torch.manual_seed(0)
    base = randomise(timm.create_model(name, features_only=True, **options)).eval()
    x = torch.randn(3, 3, 32, 32)
    wf = modulate(base, num_classes=4, example_input=x, config=ModulateConfig(output=output))
    actions = {row.action for row in wf.summary().rows if row.kind != "Parameter"}
    assert actions <= {"gated", "gated behind", "folded", "fused"}, wf.summary()
    wf.verify(x)
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(torch.randn(memory.shape, generator=torch.Generator().manual_seed(0)))
        baked, index = wf.bake(1)(x), torch.tensor([1, -1, 1])
        for own, mixed, ordinary, plain in zip(wf(x, forget=1), wf(x, forget=index), baked, base(x), strict=True):
            torch.testing.assert_close(own, ordinary, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(mixed[[0, 2]], own[[0, 2]], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(mixed[1], plain[1], rtol=1e-3, atol=1e-4)
            assert (own - plain).abs().max() > 1e-3
