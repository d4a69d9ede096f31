"""What tests of several parts share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}


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


def assert_no_worse(
    actual: dict[str, Tensor], plain: dict[str, Tensor], oracle: dict[str, Tensor], factor: float = 2.0
) -> None:
    """Each named tensor's error is at most `factor` × plain PyTorch's own error plus eps × the oracle's magnitude."""
    for name, exact in oracle.items():
        error = (actual[name].double() - exact).abs().max().item()
        allowed = factor * (plain[name].double() - exact).abs().max().item()
        allowed += EPS[actual[name].dtype] * exact.abs().max().item()
        assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"
