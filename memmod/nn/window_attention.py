"""torchvision's shifted-window attention with projections that are modules, so that they can be modulated."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from memmod.nn.leaf import call_node
from memmod.nn.linear import ModulatedLinear

CLASSES = (ShiftedWindowAttention, ShiftedWindowAttentionV2)


class ModulatedWindowAttention(nn.Module):
    """Shifted-window attention (arXiv 2103.14030; version 2: arXiv 2111.09883) with modulated `qkv` and `proj`.

    torchvision's layer passes its projections' weights to a function, so gates on them would silently not act.

    Shapes:
        x ``[B, H, W, C]``; the output has the same shape.
    """

    def __init__(self, attention: ShiftedWindowAttention, num_classes: int, **options: Any) -> None:
        super().__init__()
        # Everything has the name that it has in torchvision's layer.
        _take_over(self, attention)
        self.kind = type(attention)
        self.cosine = isinstance(attention, ShiftedWindowAttentionV2)
        self.qkv = ModulatedLinear.from_linear(
            _keyless_bias(attention) if self.cosine else attention.qkv, num_classes, **options
        )
        self.proj = ModulatedLinear.from_linear(attention.proj, num_classes, **options)
        self.train(attention.training)

    def to_window_attention(self, qkv: nn.Linear, proj: nn.Linear) -> ShiftedWindowAttention:
        """torchvision's layer again, with the given ordinary projections."""
        attention = self.kind.__new__(self.kind)
        _take_over(attention, self)
        attention.qkv, attention.proj = qkv, proj
        for name in ("kind", "cosine"):
            del attention.__dict__[name]
        return attention

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy):
            return call_node(self, (x,), {})
        batch, height, width, channels = x.shape
        rows, columns = self.window_size
        bias = self.kind.get_relative_position_bias(self)
        x = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        padded_h, padded_w = x.shape[1:3]
        shift = [
            s if w < size else 0
            for s, w, size in zip(self.shift_size, self.window_size, (padded_h, padded_w), strict=True)
        ]
        if any(shift):
            x = torch.roll(x, shifts=(-shift[0], -shift[1]), dims=(1, 2))
        x = _windows(x, rows, columns)
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.cosine:
            scale = torch.clamp(self.logit_scale, max=math.log(100.0)).exp()
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * scale
        else:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        scores = scores + bias
        if any(shift):
            mask = _shift_mask(padded_h, padded_w, self.window_size, shift, x)
            scores = (scores.unflatten(0, (batch, -1)) + mask[None, :, None]).flatten(0, 1)
        weights = F.dropout(torch.softmax(scores, dim=-1), self.attention_dropout, self.training)
        x = self.proj((weights @ v).transpose(1, 2).flatten(2))
        x = F.dropout(x, self.dropout, self.training)
        x = x.view(batch, padded_h // rows, padded_w // columns, rows, columns, channels)
        x = x.transpose(2, 3).reshape(batch, padded_h, padded_w, channels)
        if any(shift):
            x = torch.roll(x, shifts=(shift[0], shift[1]), dims=(1, 2))
        return x[:, :height, :width].contiguous()


def _take_over(new: nn.Module, source: nn.Module) -> None:
    """Give `new` the attributes of `source`, and its parts in tables of its own."""
    tables = ("_parameters", "_buffers", "_modules")
    new.__dict__.update(vars(source) | {table: dict(getattr(source, table)) for table in tables})


def _keyless_bias(attention: ShiftedWindowAttentionV2) -> nn.Linear:
    """The qkv layer as version 2 applies it: the key's part of the bias is zero."""
    qkv = copy.copy(attention.qkv)
    qkv._parameters = dict(qkv._parameters)
    if qkv.bias is not None:
        bias = qkv.bias.detach().clone()
        third = bias.numel() // 3
        bias[third : 2 * third] = 0
        qkv.bias = nn.Parameter(bias, requires_grad=qkv.bias.requires_grad)
    return qkv


def _windows(x: Tensor, rows: int, columns: int) -> Tensor:
    """``[B, H, W, C]`` to ``[B·windows, rows·columns, C]``, the windows of a sample contiguous."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // rows, rows, width // columns, columns, channels)
    return x.transpose(2, 3).reshape(-1, rows * columns, channels)


def _shift_mask(height: int, width: int, window: list[int], shift: list[int], like: Tensor) -> Tensor:
    """``[windows, n, n]``: -100 between places that the cyclic shift brought together from different regions."""
    region = like.new_zeros((1, height, width, 1))
    h_parts = ((0, height - window[0]), (height - window[0], height - shift[0]), (height - shift[0], height))
    w_parts = ((0, width - window[1]), (width - window[1], width - shift[1]), (width - shift[1], width))
    for number, (h, w) in enumerate((h, w) for h in h_parts for w in w_parts):
        region[:, h[0] : h[1], w[0] : w[1]] = number
    region = _windows(region, *window).squeeze(-1)
    return (region[:, None] != region[:, :, None]).to(like.dtype) * -100.0
