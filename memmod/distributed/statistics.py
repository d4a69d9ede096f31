"""BatchNorm on the statistics of the whole batch, of which each process has a share of the samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from memmod.distributed import processes
from memmod.errors import ModelError


class GlobalBatchStatistics(TorchFunctionMode):
    """A scope in which `torch.nn.functional.batch_norm` on a batch's own statistics takes those of all processes.

    PyTorch's SyncBatchNorm is for GPUs alone, and a module that would have to stand in for each BatchNorm.

    Raises:
        ModelError: in the scope, running statistics are to be updated.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        return function(*args, **kwargs)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    if running_mean is not None or running_var is not None:
        raise ModelError("a BatchNorm would update its running statistics, which processes would do each for itself")
    y = _Standardise.apply(x, eps)
    shape = (1, -1, *[1] * (x.dim() - 2))
    if weight is not None:
        y = y * weight.view(shape).to(y.dtype)
    return y if bias is None else y + bias.view(shape).to(y.dtype)


class _Standardise(torch.autograd.Function):
    """(x - mean) / √(variance + eps) of each channel of x ``[B, K, ...]``, of the samples of all processes.

    The gradient is that of batch normalisation (arXiv 1502.03167), with its two sums over all samples.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        dims = [0, *range(2, x.dim())]
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        var, mean = torch.var_mean(wide, dims, correction=0)
        size = x.numel() // x.shape[1]
        # Each process's mean and variance, put together in fp64 without the cancellation of sums of squares.
        own = torch.cat([mean.double(), var.double(), mean.new_tensor([size], dtype=torch.float64)])
        parts = [torch.empty_like(own) for _ in range(processes.count())]
        dist.all_gather(parts, own)
        means, variances, sizes = torch.stack(parts).split([len(mean), len(mean), 1], 1)
        total = sizes.sum()
        mean = (sizes * means).sum(0) / total
        var = (sizes * (variances + (means - mean).square())).sum(0) / total
        shape = (1, -1, *[1] * (x.dim() - 2))
        inverse = (var + eps).rsqrt().to(wide.dtype).view(shape)
        y = (wide - mean.to(wide.dtype).view(shape)) * inverse
        ctx.save_for_backward(y, inverse)
        ctx.total, ctx.dims, ctx.shape = total, dims, shape
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        y, inverse = ctx.saved_tensors
        wide = dy.to(y.dtype)
        sums = torch.stack([wide.sum(ctx.dims), (wide * y).sum(ctx.dims)]).double()
        dist.all_reduce(sums)
        first, second = (sums / ctx.total).to(y.dtype).unbind(0)
        dx = inverse * (wide - first.view(ctx.shape) - y * second.view(ctx.shape))
        return dx.to(dy.dtype), None
