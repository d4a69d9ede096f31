"""The second stage of a memory's gradient: sums of samples by the classes they select, in a fixed order, no atomics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from memmod.kernels.configs import ClassSumsConfig, architecture, class_sums_config


@triton.jit
def class_sums_kernel(
    a,
    b,
    memory,
    index,
    sums,
    B,
    P,
    C,
    K,
    S,
    SPLIT: tl.constexpr,
    IDENTITY: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """sums [splits, C, K]: for each class the sum of a ⊙ b [B, P, K] (a alone if b is None) over the samples of a split
    that select it. IDENTITY: times the gates of the sample's other classes, from memory [C, K]."""
    i_c = tl.program_id(0)
    o_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    i_split = tl.program_id(2)
    m_k = o_k < K
    o_s = tl.arange(0, BLOCK_S)
    b_sum = tl.zeros((BLOCK_B, BLOCK_K), dtype=tl.float32)
    for i_b in range(0, SPLIT, BLOCK_B):
        o_b = i_split * SPLIT + i_b + tl.arange(0, BLOCK_B)
        m_s = (o_b < B)[:, None] & (o_s < S)[None, :]
        b_classes = tl.load(index + o_b.to(tl.int64)[:, None] * S + o_s[None, :], mask=m_s, other=-1)
        selects = tl.max((b_classes == i_c).to(tl.int32), axis=1) > 0
        m = selects[:, None] & m_k[None, :]
        b_own = tl.zeros((BLOCK_B, BLOCK_K), dtype=tl.float32)
        for i_p in range(P):
            o = (o_b.to(tl.int64) * P + i_p)[:, None] * K + o_k[None, :]
            b_term = tl.load(a + o, mask=m, other=0.0).to(tl.float32)
            if b is not None:
                b_term *= tl.load(b + o, mask=m, other=0.0).to(tl.float32)
            b_own += b_term
        if IDENTITY:
            for i_s in range(S):
                b_class = tl.sum(tl.where((o_s == i_s)[None, :], b_classes, 0), axis=1)
                earlier = (b_classes == b_class[:, None]) & (o_s < i_s)[None, :]
                counts = (tl.max(earlier.to(tl.int32), axis=1) == 0) & (b_class != i_c) & (b_class >= 0) & (b_class < C)
                o_gate = b_class.to(tl.int64)[:, None] * K + o_k[None, :]
                b_own *= tl.load(memory + o_gate, mask=counts[:, None] & m, other=1.0)
        b_sum += b_own
    o_sum = (i_split * C + i_c).to(tl.int64) * K + o_k
    tl.store(sums + o_sum, tl.sum(b_sum, axis=0), mask=m_k)


@triton.jit
def memory_gradient_kernel(sums, memory, dmemory, SPLITS, SIZE, SIGMOID: tl.constexpr, BLOCK: tl.constexpr):
    """dmemory [SIZE] = Σ sums [SPLITS, SIZE], times σ(−memory) if SIGMOID."""
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m = o < SIZE
    b_sum = tl.zeros((BLOCK,), dtype=tl.float32)
    for i_split in range(SPLITS):
        b_sum += tl.load(sums + tl.cast(i_split, tl.int64) * SIZE + o, mask=m, other=0.0)
    if SIGMOID:
        b_sum *= tl.sigmoid(-tl.load(memory + o, mask=m, other=0.0))
    tl.store(dmemory + o, b_sum, mask=m)


BLOCK = 512


def class_sums(
    a: Tensor, b: Tensor | None, memory: Tensor, index: Tensor, gate: str, config: ClassSumsConfig | None = None
) -> Tensor:
    """dα ``[C, K]`` from each sample's terms a ⊙ b (a alone without b), of ``B·P·K`` numbers in that order.

    Exactly 0 for a class that no sample selects; a class twice in a set counts once.
    """
    memory, index = memory.contiguous(), index.contiguous()
    samples, (classes, width) = index.shape[0], memory.shape
    parts = a.numel() // (samples * width)
    sets = index.numel() // samples
    config = config or class_sums_config(classes, width, architecture(a.device))
    splits = triton.cdiv(samples, config.split)
    sums = memory.new_empty(splits, classes, width)
    class_sums_kernel[(classes, triton.cdiv(width, config.block_k), splits)](
        a,
        b,
        memory,
        index,
        sums,
        samples,
        parts,
        classes,
        width,
        sets,
        IDENTITY=gate == "identity" and sets > 1,
        BLOCK_S=triton.next_power_of_2(max(1, sets)),
        **config.launch(),
    )
    dmemory = torch.empty_like(memory)
    memory_gradient_kernel[(triton.cdiv(memory.numel(), BLOCK),)](
        sums, memory, dmemory, splits, memory.numel(), SIGMOID=gate == "sigmoid", BLOCK=BLOCK
    )
    return dmemory
