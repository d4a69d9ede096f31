"""Small networks with random memories, exported by the tests."""

from __future__ import annotations

import torch
from torch import nn

from memmod import ModulateConfig, ModulatedModel, modulate
from memmod.surgery.random_weights import randomise

NAMES = ("ant", "bee", "cat", "dog", "eel")
SHAPE = (3, 12, 12)


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Linear(8, len(NAMES)),
    )


def modulated(base: nn.Module, example: object = None, **options: object) -> ModulatedModel:
    """The network with random weights, statistics and memories."""
    torch.manual_seed(0)
    base = randomise(base).eval()
    example = torch.randn(3, *SHAPE) if example is None else example
    wf = modulate(base, example_input=example, config=ModulateConfig(**options), class_names=NAMES)
    generator = torch.Generator().manual_seed(1)
    wf.load_memory_state({n: 2 * torch.randn(m.shape, generator=generator) for n, m in wf.named_memories()})
    return wf


def images(batch: int, height: int = SHAPE[1], width: int = SHAPE[2]) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(2))
