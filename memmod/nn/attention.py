"""Multi-head attention whose four projections forget classes by sample."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from memmod import functional
from memmod.errors import ModelError
from memmod.nn.leaf import call_node
from memmod.nn.linear import ModulatedLinear


class ModulatedMultiheadAttention(nn.Module):
    """`torch.nn.MultiheadAttention` with a modulated in-projection (query, key, value) and out-projection.

    `torch.nn.MultiheadAttention` reads its projections' weights without calling a module, so gates on them would
    silently not act; here both projections are `ModulatedLinear` layers: `in_proj` (3·embed_dim units) and `out_proj`.

    `embed_dim`, `num_heads`, `dropout`, `bias`, `batch_first`, `device` and `dtype` are as in
    `torch.nn.MultiheadAttention`; `num_classes` and the `options` (granularity, gate, gate_bias, keep, init) as in
    `ModulatedLinear`.

    Shapes:
        query ``[B, L, E]``, key and value ``[B, S, E]`` (``[L, B, E]``, ``[S, B, E]`` unless batch_first; without B:
        one sample); index int64 ``[B]`` or ``[B, S']``; returns (output like query, weights or None).

    Raises:
        SelectionError: an index of a wrong dtype, shape, device or range, or rows that are not a multiple of B.
        ValueError: `embed_dim` is not divisible by `num_heads`.
    """

    # torch's encoder layers take their fused inference path, which calls no projection, only where this is True.
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_classes: int,
        dropout: float = 0.0,
        bias: bool = True,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.batch_first = batch_first
        options = {"bias": bias, "device": device, "dtype": dtype, **options}
        self.in_proj = ModulatedLinear(embed_dim, 3 * embed_dim, num_classes, **options)
        self.out_proj = ModulatedLinear(embed_dim, embed_dim, num_classes, **options)
        nn.init.xavier_uniform_(self.in_proj.weight)
        if bias:
            nn.init.zeros_(self.in_proj.bias)
            nn.init.zeros_(self.out_proj.bias)

    @staticmethod
    def refusal(attention: nn.MultiheadAttention) -> str | None:
        """Why `attention` has no modulated equivalent, or None if it has one."""
        if attention.in_proj_weight is None:
            return "its key and value sizes differ from its embedding's (kdim, vdim)"
        if attention.bias_k is not None or attention.add_zero_attn:
            return "it appends rows of its own to the keys (add_bias_kv, add_zero_attn)"
        return None

    @classmethod
    def from_multihead_attention(
        cls, attention: nn.MultiheadAttention, num_classes: int, **options: Any
    ) -> ModulatedMultiheadAttention:
        """A modulated equivalent that shares the weights of `attention`; `options` as in the constructor.

        Raises:
            ModelError: `attention` uses kdim, vdim, add_bias_kv or add_zero_attn.
        """
        reason = cls.refusal(attention)
        if reason is not None:
            raise ModelError(f"this nn.MultiheadAttention has no modulated equivalent: {reason}")
        layer = cls(
            attention.embed_dim,
            attention.num_heads,
            num_classes,
            dropout=attention.dropout,
            bias=attention.in_proj_bias is not None,
            batch_first=attention.batch_first,
            device="meta",
            **options,
        )
        packed = nn.Linear(attention.embed_dim, 3 * attention.embed_dim, bias=False, device="meta")
        packed.weight, packed.bias = attention.in_proj_weight, attention.in_proj_bias
        layer.in_proj = ModulatedLinear.from_linear(packed, num_classes, **options)
        layer.out_proj = ModulatedLinear.from_linear(attention.out_proj, num_classes, **options)
        layer.train(attention.training)
        return layer

    @property
    def in_proj_weight(self) -> Tensor:
        """Of query, key and value, ``[3·embed_dim, embed_dim]``: read where `torch.nn.MultiheadAttention`'s is."""
        return self.in_proj.weight

    @property
    def in_proj_bias(self) -> Tensor | None:
        """Of query, key and value, ``[3·embed_dim]``."""
        return self.in_proj.bias

    if TYPE_CHECKING:

        def __call__(
            self, query: Tensor, key: Tensor, value: Tensor, *args: Any, index: Tensor | None = None, **options: Any
        ) -> tuple[Tensor, Tensor | None]: ...

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention from `query` to `key` and `value`, under the selection `index`; None: the model's selection.

        `key_padding_mask` ``[B, S]``, `attn_mask` ``[L, S]`` or ``[B·num_heads, L, S]``, `need_weights`,
        `average_attn_weights` and `is_causal` are as in `torch.nn.MultiheadAttention`.

        Raises:
            ValueError: `is_causal` without `attn_mask`.
        """
        if isinstance(query, Proxy):
            options = {
                "key_padding_mask": key_padding_mask,
                "need_weights": need_weights,
                "attn_mask": attn_mask,
                "average_attn_weights": average_attn_weights,
                "is_causal": is_causal,
                "index": index,
            }
            return call_node(self, (query, key, value), options)
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask: pass the causal attn_mask too")
        same_key, same_value = key is query, value is key
        batched = query.dim() == 3

        def to_batch_first(x: Tensor) -> Tensor:
            if not batched:
                return x.unsqueeze(0)
            return x if self.batch_first else x.transpose(0, 1)

        query = to_batch_first(query)
        key = query if same_key else to_batch_first(key)
        value = key if same_value else to_batch_first(value)
        q, k, v = (self._split_heads(x) for x in self._project(query, key, value, index))
        mask = self._merge_masks(attn_mask, key_padding_mask, q, k)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, dropout) if dropout else weights
            out = weights @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        out = _project(self.out_proj, out.transpose(1, 2).flatten(2), index)
        if weights is not None:
            weights = weights.mean(dim=1) if average_attn_weights else weights
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor, index: Tensor | None) -> tuple[Tensor, ...]:
        if key is query and value is key:
            return _project(self.in_proj, query, index).chunk(3, dim=-1)
        if value is key:
            k, v = self._project_units(key, 1, 3, index).chunk(2, dim=-1)
        else:
            k, v = self._project_units(key, 1, 2, index), self._project_units(value, 2, 3, index)
        return self._project_units(query, 0, 1, index), k, v

    def _project_units(self, x: Tensor, first: int, last: int, index: Tensor | None) -> Tensor:
        """Apply the parts `first` to `last` of the packed projection (0 query, 1 key, 2 value) to x ``[B, L, E]``."""
        layer = self.in_proj
        units = slice(first * self.embed_dim, last * self.embed_dim)
        bias = None if layer.bias is None else layer.bias[units]
        if not isinstance(layer, ModulatedLinear):
            return F.linear(x, layer.weight[units], bias)
        memory, input_memory, index = layer.modulation(index)
        return functional.modulated_linear(
            x,
            layer.weight[units],
            bias,
            None if memory is None else memory[:, units],
            index,
            input_memory=input_memory,
            gate=layer.gate,
            gate_bias=layer.gate_bias,
            keep=layer.keep,
        )

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _merge_masks(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, k: Tensor):
        """One additive mask that broadcasts over ``[B, heads, L, S]``, or None."""
        merged = None
        if attn_mask is not None:
            merged = _additive(attn_mask, q.dtype)
            if merged.dim() == 3:
                merged = merged.view(q.shape[0], self.num_heads, q.shape[2], k.shape[2])
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, q.dtype).view(q.shape[0], 1, 1, k.shape[2])
            merged = padding if merged is None else merged + padding
        return merged

    def to_multihead_attention(self, in_proj: nn.Linear, out_proj: nn.Linear) -> nn.MultiheadAttention:
        """An `nn.MultiheadAttention` of this layer's shape, with the weights of the given ordinary projections."""
        attention = nn.MultiheadAttention(
            self.embed_dim,
            self.num_heads,
            dropout=self.dropout,
            bias=in_proj.bias is not None,
            batch_first=self.batch_first,
            device="meta",
        )
        attention.in_proj_weight, attention.in_proj_bias = in_proj.weight, in_proj.bias
        attention.out_proj.weight, attention.out_proj.bias = out_proj.weight, out_proj.bias
        return attention.train(self.training)


def _project(layer: nn.Linear, x: Tensor, index: Tensor | None) -> Tensor:
    # A projection that was not to be gated is an ordinary layer.
    return layer(x) if index is None or not isinstance(layer, ModulatedLinear) else layer(x, index)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
