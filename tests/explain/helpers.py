"""What the tests of explanations share: networks with memories that differ, and images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memmod import ModulateConfig, ModulatedModel, modulate


class Small(nn.Module):
    """Convolutions with BatchNorm, a residual connection, and a head behind a pooling."""

    def __init__(self, classes: int = 5, inplace: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace))
        self.down = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.act = nn.ReLU(inplace)
        self.mix = nn.Conv2d(8, 8, 1)
        self.neck = nn.Linear(8, 12)
        self.fc = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.down(self.stem(x)))
        y = self.mix(x)
        y += x
        return self.fc(torch.tanh(self.neck(y.mean((2, 3)))))


def settle(network: nn.Module, seed: int = 0) -> nn.Module:
    """Norms, heads and layer scales that let a gate change something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            elif not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in network.named_buffers():
            if "running_mean" in name:
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
    return network.eval()


def with_memories(network: nn.Module, x: Tensor, config: ModulateConfig | None = None, seed: int = 1) -> ModulatedModel:
    """Modulated, with memories drawn so that some gates are closed."""
    wf = modulate(network, example_input=x, config=config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(1.5 + 1.5 * torch.randn(memory.shape, generator=generator))
            if wf.config.gate == "identity":
                memory.sigmoid_()
    return wf
