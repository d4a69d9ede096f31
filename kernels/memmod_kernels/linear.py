"""memmod::modulated_linear: one product with the gates of the inputs in its prologue and those of the units in its
epilogue; the gradient of x is the same product with the two exchanged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from memmod.kernels.configs import MatmulConfig, architecture, matmul_config, programs
from memmod.kernels.gates import GateTable, gate_table, tile_gates, tile_rows
from memmod.kernels.output import memory_gradient, modulate, sums_along
from memmod.ops.backends.gpu_policy import linear_path


@triton.jit
def modulated_matmul_kernel(
    a,
    b,
    bias,
    y,
    saved,
    in_table,
    in_rows,
    out_table,
    out_rows,
    M,
    N,
    K,
    T,
    B,
    R_IN,
    R_OUT,
    B_COLUMNS: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    SAVE_UNGATED: tl.constexpr,
    PAIR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """y [M, N] = s_out ⊙ ((s_in ⊙ a) b + bias), a [M, K], b [K, N] (stored [N, K] if B_COLUMNS); row m belongs to
    sample m // T. An absent operand is None. saved: s_out ⊙ (…), or (…) alone."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    for i_tile in range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        # GROUP_M tiles of rows at a time: their rows of a, and the columns of b in use, stay in the cache.
        i_group = i_tile // (GROUP_M * tiles_n)
        group = min(tiles_m - i_group * GROUP_M, GROUP_M)
        i_in_group = i_tile - i_group * GROUP_M * tiles_n
        i_m = i_group * GROUP_M + i_in_group % group
        i_n = i_in_group // group

        o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
        o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
        o_k = tl.arange(0, BLOCK_K)
        m_m, m_n = o_m < M, o_n < N
        p_a = a + o_m.to(tl.int64)[:, None] * K + o_k[None, :]
        if B_COLUMNS:
            p_b = b + o_n.to(tl.int64)[None, :] * K + o_k[:, None]
        else:
            p_b = b + o_k.to(tl.int64)[:, None] * N + o_n[None, :]
        if in_table is not None:
            b_row, b_next, m_first = tile_rows(in_rows, o_m, i_m * BLOCK_M, T, B, PAIR)

        b_z = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for i_k in range(0, K, BLOCK_K):
            m_k = o_k < K - i_k
            b_a = tl.load(p_a, mask=m_m[:, None] & m_k[None, :], other=0.0)
            b_b = tl.load(p_b, mask=m_k[:, None] & m_n[None, :], other=0.0)
            if in_table is not None:
                b_s = tile_gates(in_table, b_row, b_next, m_first, i_k + o_k, m_k, R_IN, K, PAIR)
                b_a = (b_a * b_s).to(b_a.dtype)
            b_z = tl.dot(b_a, b_b, b_z, input_precision=PRECISION)
            p_a += BLOCK_K
            if B_COLUMNS:
                p_b += BLOCK_K
            else:
                p_b += BLOCK_K * tl.cast(N, tl.int64)

        m_y = m_m[:, None] & m_n[None, :]
        o_y = o_m.to(tl.int64)[:, None] * N + o_n[None, :]
        if bias is not None:
            b_bias = tl.load(bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
            if GATE_BIAS:
                b_z += b_bias
        b_y = b_z
        if out_table is not None:
            b_row, b_next, m_first = tile_rows(out_rows, o_m, i_m * BLOCK_M, T, B, PAIR)
            b_y = b_z * tile_gates(out_table, b_row, b_next, m_first, o_n, m_n, R_OUT, N, PAIR)
        if saved is not None:
            b_saved = b_z if SAVE_UNGATED else b_y
            tl.store(saved + o_y, b_saved.to(saved.dtype.element_ty), mask=m_y)
        if bias is not None:
            if not GATE_BIAS:
                b_y += b_bias
        tl.store(y + o_y, b_y.to(y.dtype.element_ty), mask=m_y)


def matmul(
    a: Tensor,
    b: Tensor,
    y: Tensor,
    *,
    b_columns: bool,
    bias: Tensor | None = None,
    in_gates: GateTable | None = None,
    out_gates: GateTable | None = None,
    gate_bias: bool = True,
    keep: str | None = None,
    config: MatmulConfig | None = None,
    tf32: object | None = None,
) -> Tensor | None:
    """y = s_out ⊙ ((s_in ⊙ a) b + bias) in a's dtype, with fp32 sums; returns what `keep` asks for.

    Args:
        a: ``[M, K]``, contiguous; M a multiple of the gates' samples.
        b: ``[K, N]``, or ``[N, K]`` if `b_columns`; contiguous.
        y: written: M·N numbers in the order of ``[M, N]``, of any shape.
        gate_bias: False adds bias behind s_out.
        keep: "gated" returns s_out ⊙ (…) without a bias outside, "ungated" the same without s_out, both like y.
        config: instead of `matmul_config`'s.
        tf32: the library's setting of fp32 precision that the product obeys; `torch.backends.cuda.matmul` if None.
    """
    (rows, inner), columns = a.shape, b.shape[0 if b_columns else 1]
    saved = torch.empty_like(y) if keep is not None else None
    if y.numel() == 0:
        return saved
    config = config or matmul_config(rows, columns, a.dtype, architecture(a.device))
    samples = next((gates.samples for gates in (in_gates, out_gates) if gates is not None), 1)
    height = rows // samples
    tiles = triton.cdiv(rows, config.block_m) * triton.cdiv(columns, config.block_n)
    modulated_matmul_kernel[(min(tiles, programs(a.device, config)),)](
        a,
        b,
        bias,
        y,
        saved,
        *table_arguments(in_gates),
        *table_arguments(out_gates),
        rows,
        columns,
        inner,
        height,
        samples,
        table_height(in_gates),
        table_height(out_gates),
        B_COLUMNS=b_columns,
        GATE_BIAS=gate_bias,
        SAVE_UNGATED=keep == "ungated",
        PAIR=height >= config.block_m,
        PRECISION=precision(a.dtype, tf32 or torch.backends.cuda.matmul),
        **config.launch(),
    )
    return saved


def table_arguments(gates: GateTable | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if gates is None else (gates.table, gates.rows)


def table_height(gates: GateTable | None) -> int:
    return 0 if gates is None else gates.table.shape[0]


def precision(dtype: torch.dtype, setting: object) -> str:
    """How an fp32 product runs on tensor cores: as the library would, in TF32 if the user allows it, else in three."""
    return "tf32" if dtype is not torch.float32 or setting.fp32_precision == "tf32" else "tf32x3"


def modulated_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    memory: Tensor | None,
    input_memory: Tensor | None,
    index: Tensor,
    gate: str,
    gate_bias: bool,
    keep_gated: bool,
) -> tuple[Tensor, Tensor]:
    """(y ``[k·B, …, O]``, saved) for x ``[k·B, …, I]``, weight ``[O, I]``; arXiv 2304.02049."""
    units, inputs = weight.shape
    rows, shape = x.flatten(0, -2), (*x.shape[:-1], units)
    s_in, s_out = gate_table(input_memory, index, gate), gate_table(memory, index, gate)
    keep = None if not keep_gated or memory is None else "ungated" if gate == "identity" else "gated"
    path = linear_path(inputs, whole_batch=index.shape[0] == 1 and keep is None)
    if path == "fused":
        y = x.new_empty(shape)
        saved = matmul(
            rows.contiguous(),
            weight.contiguous(),
            y,
            b_columns=True,
            bias=bias,
            in_gates=s_in,
            out_gates=s_out,
            gate_bias=gate_bias,
            keep=keep,
        )
        return y, y.new_empty(0) if saved is None else saved
    if path == "fold":
        y, saved = F.linear(rows, folded(weight, s_in, s_out), folded_bias(bias, s_out, gate_bias)), None
    else:
        if s_in is not None:
            rows = modulate(rows, s_in, -1)
        z = F.linear(rows, weight, bias if gate_bias else None)
        y, saved = finish(z, s_out, None if gate_bias else bias, keep, -1)
    # No views: what an op returns may be changed in place.
    y = torch.ops.aten._unsafe_view.default(y, shape)
    return y, y.new_empty(0) if saved is None else torch.ops.aten._unsafe_view.default(saved, shape)


def modulated_linear_backward(
    dy: Tensor,
    x_shape: Sequence[int],
    x: Tensor | None,
    weight: Tensor | None,
    memory: Tensor | None,
    input_memory: Tensor | None,
    index: Tensor,
    saved: Tensor | None,
    gate: str,
    gate_bias: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias, dmemory, dinput_memory); what `needs` does not ask for is an empty ``[0]`` tensor."""
    need_dx, need_dweight, need_dbias, need_dmemory, need_dinput = needs
    inputs = x_shape[-1]
    rows = dy.flatten(0, -2).contiguous()
    kept = None if saved is None else saved.flatten(0, -2).contiguous()
    s_in = s_out = None
    if need_dx or need_dinput or need_dweight or (need_dbias and gate_bias):
        s_in, s_out = gate_table(input_memory, index, gate), gate_table(memory, index, gate)
    dx = dweight = dbias = dmemory = dinput = None
    need_product = need_dx or need_dinput
    path = linear_path(inputs, whole_batch=index.shape[0] == 1 and not need_dinput)
    dz = None
    if need_dweight or (need_product and path == "unfused"):
        if need_dmemory:
            dz, dmemory = memory_gradient(rows, kept, memory, index, gate, -1, gates=s_out)
        else:
            dz = rows if s_out is None else modulate(rows, s_out, -1)
    elif need_dmemory:
        _, dmemory = memory_gradient(rows, kept, memory, index, gate, -1)
    if need_product:
        # The identity gate's memory needs the product before its own gate.
        late = need_dinput and gate == "identity"
        if path == "fused":
            dx = rows.new_empty(rows.shape[0], inputs)
            matmul(
                rows if dz is None else dz,
                weight.contiguous(),
                dx,
                b_columns=False,
                in_gates=s_out if dz is None else None,
                out_gates=None if late else s_in,
            )
        elif path == "fold":
            dx = rows @ folded(weight, s_in, s_out)
        else:
            dx = dz @ weight
            if s_in is not None and not late:
                dx = modulate(dx, s_in, -1, out=dx)
        if need_dinput:
            flat = x.flatten(0, -2).contiguous()
            gates = s_in if late and need_dx else None
            gated, dinput = memory_gradient(dx, flat, input_memory, index, gate, -1, gates=gates)
            dx = dx if gated is None else gated
    if need_dweight:
        flat = x.flatten(0, -2)
        dweight = dz.T @ (flat if s_in is None else modulate(flat, s_in, -1))
    if need_dbias:
        dbias = sums_along(rows, s_out if gate_bias else None, -1)
    if dx is not None:
        dx = torch.ops.aten._unsafe_view.default(dx, list(x_shape))
    gradients = (dx if need_dx else None, dweight, dbias, dmemory, dinput)
    return tuple(dy.new_empty(0) if gradient is None else gradient for gradient in gradients)


def folded(weight: Tensor, s_in: GateTable | None, s_out: GateTable | None) -> Tensor:
    """weight ``[O, I, …]`` with the gates of a whole batch in it, in its own dtype."""
    w = weight.float()
    if s_out is not None:
        w = w * whole_batch(s_out).view(-1, *[1] * (weight.dim() - 1))
    if s_in is not None:
        w = w * whole_batch(s_in).view(1, -1, *[1] * (weight.dim() - 2))
    return w.to(weight.dtype)


def folded_bias(bias: Tensor | None, s_out: GateTable | None, gate_bias: bool) -> Tensor | None:
    if bias is None or s_out is None or not gate_bias:
        return bias
    return (bias.float() * whole_batch(s_out)).to(bias.dtype)


def whole_batch(gates: GateTable) -> Tensor:
    """The only sample's multipliers ``[K]``."""
    return modulate(gates.table.new_ones(1, gates.table.shape[1]), gates, -1)[0]


def finish(
    z: Tensor, s_out: GateTable | None, bias: Tensor | None, keep: str | None, dim: int
) -> tuple[Tensor, Tensor | None]:
    """(y, saved) of a library product z that nothing else holds: its gates, a bias outside of them, what to keep."""
    if keep == "ungated":
        return modulate(z, s_out, dim, bias=bias), z
    if keep == "gated" and bias is None:
        y = modulate(z, s_out, dim, out=z) if s_out is not None else z
        return y, y.clone()
    if keep == "gated":
        gated = modulate(z, s_out, dim, out=z)
        shape = [1] * z.dim()
        shape[dim] = -1
        return gated + bias.view(shape), gated
    if s_out is None and bias is None:
        return z, None
    return modulate(z, s_out, dim, bias=bias, out=z), None
