"""Random weights with which every layer matters."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give a model weights with which every layer matters.

    Untrained networks often have zero-initialised last norms, layer scales or heads: a gate there changes nothing.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(t: Tensor, mean: float, std: float) -> None:
        t.copy_(torch.randn(t.shape, generator=generator) * std + mean)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                normal(parameter, *((0.0, 0.1) if name.endswith("bias") else (0.7, 0.2)))
            elif not parameter.any():
                normal(parameter, 0.0, 0.05)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                normal(module.running_mean, 0.0, 0.2)
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
        heads = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-2:]
        for head in heads:
            normal(head.weight, 0.0, head.weight[0].numel() ** -0.5)
    return model
