"""Muon: momentum whose update of a weight has all of its singular values near 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# The quintic Newton-Schulz iteration of Jordan et al.: it does not converge, but five steps bring singular values from
# 0.0015 up, of 1, to within 0.68 and 1.2.
QUINTIC = (3.4445, -4.7750, 2.0315)
STEPS = 5


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum, the update of every weight made orthogonal (Jordan et al., 2024, "Muon: An optimizer
    for hidden layers in neural networks"), at the size of AdamW's updates, so that a learning rate suits both
    (arXiv 2502.16982, section 2.2).

    `torch.optim.Muon` takes weights of two dimensions alone, and iterates in bfloat16, which processors without such
    units emulate: with oneDNN held to AVX2 its step took 3.2 times the forward and backward of the zoo's ViT, 64
    images. In the weights' own type, as here, it takes 0.17 of them.

    Args:
        params: weights ``[out, ...]`` of two dimensions or more, each a matrix ``[out, all the rest]``.
        lr: learning rate.
        momentum: of the gradient.
        weight_decay: decoupled, as AdamW's.

    Raises:
        ValueError: a parameter of fewer dimensions.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for p in group["params"]:
                if p.dim() < 2:
                    raise ValueError(f"Muon is for matrices, not for a parameter of shape {tuple(p.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. `closure`: evaluates the loss again, and gives the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                average = state["momentum_buffer"]
                average.lerp_(p.grad, 1 - group["momentum"])
                matrix = p.grad.lerp(average, group["momentum"]).flatten(1)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                # AdamW's updates have a root mean square of about 0.2.
                scale = 0.2 * max(matrix.shape) ** 0.5
                p.add_(orthogonal(matrix).reshape(p.shape), alpha=-group["lr"] * scale)
        return loss


def orthogonal(matrix: Tensor) -> Tensor:
    """About the orthogonal factor U·Vᵀ of a matrix U·S·Vᵀ ``[m, n]``: its singular values are 0.68 to 1.2, or less
    where S is below 0.0015 of the matrix's Frobenius norm.
    """
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def hidden_weights(network: nn.Module) -> list[str]:
    """The names of the weights that Muon is for: of linear and conv layers, but the first and the last of them, and
    those whose groups each have a matrix of their own.
    """
    layers = [
        (f"{name}.weight" if name else "weight", layer)
        for name, layer in network.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
    ]
    own = {name for name, p in network.named_parameters() if p.requires_grad}
    return [name for name, layer in layers[1:-1] if name in own and getattr(layer, "groups", 1) == 1]
