"""The CUDA C++ kernels (csrc/cuda) as primitives of the GPU's ops: a product for few rows, an implicit one for
convolutions in channels_last, and the passes around the library's products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memmod.ops.backends import gpu_policy
from memmod.ops.backends.cuda import policy
from memmod.ops.backends.gpu.output import modulate
from memmod.ops.backends.gpu.primitives import Gates, GradientPath, Keep, Primitives, contiguous
from memmod.ops.backends.gpu_policy import Path
from memmod.ops.calls import ConvCall, ConvGradCall, LayerCall, LinearCall, LinearGradCall
from memmod.ops.layout import Channels, empty_channels_last

GATES = {"sigmoid": 0, "identity": 1, "hard": 2}
# Rows, or numbers of a line, that one partial sum takes, counted from a sample's first: 4 bytes for 256 and more.
ROW_CHUNK, LINE_CHUNK = 64, 4096


class CudaPrimitives(Primitives):
    def one_pass(
        self,
        x: Tensor,
        view: Channels,
        gates: Gates | None,
        *,
        samples: int,
        other: Tensor | None = None,
        bias: Tensor | None = None,
        out: Tensor | None = None,
        bias_inside: bool = False,
        with_sums: bool = False,
    ) -> Tensor | None:
        rows = view.rows // samples
        if view.inner > 1:
            chunk, parts = LINE_CHUNK, rows * -(-view.inner // LINE_CHUNK)
        else:
            chunk, parts = ROW_CHUNK, -(-rows // ROW_CHUNK)
        sums = x.new_empty(samples, parts, view.width, dtype=torch.float32) if with_sums else None
        memory, index, gate = (None, None, 0) if gates is None else (gates.memory, gates.index, GATES[gates.gate])
        sizes = [samples, rows, view.width, view.inner, chunk]
        options = (memory, index, gate, bias_inside, False, sizes)
        torch.ops.memmod_cuda.modulate.default(x, other, contiguous(bias), out, sums, *options)
        return sums

    def class_sums(self, a: Tensor, b: Tensor | None, gates: Gates) -> Tensor:
        memory = gates.memory
        dmemory = torch.empty_like(memory)
        parts = a.numel() // (gates.samples * memory.shape[1])
        torch.ops.memmod_cuda.class_sums.default(a, b, dmemory, memory, gates.index, GATES[gates.gate], parts)
        return dmemory

    def linear_path(self, call: LinearCall, whole_batch: bool) -> Path:
        own = policy.few_rows(call) or policy.many_rows(call, gpu_policy.forced())
        return "fused" if own else "fold" if whole_batch else "unfused"

    def linear(
        self, call: LinearCall, s_in: Gates | None, s_out: Gates | None, keep: Keep | None
    ) -> tuple[Tensor, Tensor | None]:
        y = call.x.new_empty(*call.x.shape[:-1], call.weight.shape[0])
        if not policy.few_rows(call):
            gated_product(call.x.contiguous(), call, y)
            return y, None
        saved = None if keep is None else torch.empty_like(y)
        torch.ops.memmod_cuda.linear_small.default(
            call.x.contiguous(),
            call.weight.contiguous(),
            contiguous(call.bias),
            y,
            saved,
            None if s_out is None else s_out.memory,
            None if s_in is None else s_in.memory,
            call.index.contiguous(),
            GATES[call.gate],
            call.gate_bias,
            keep == "ungated",
        )
        return y, saved

    def linear_dx_path(self, call: LinearGradCall, whole_batch: bool) -> Path:
        return "fold" if whole_batch else "unfused"

    def conv2d_path(self, call: ConvCall, size: Sequence[int], channels_last: bool, whole_batch: bool) -> Path:
        return policy.conv2d_path(call, channels_last, whole_batch)

    def conv2d(
        self, call: ConvCall, size: Sequence[int], s_in: Gates | None, s_out: Gates | None, keep: Keep | None
    ) -> tuple[Tensor, Tensor | None]:
        if policy.pointwise(call, gpu_policy.forced()):
            y = empty_channels_last(call.x, call.weight.shape[0], size)
            gated_product(call.x, call, y)
            return y, None
        x = call.x if s_in is None else modulate(self, call.x, s_in, 1)
        y = empty_channels_last(x, call.weight.shape[0], size)
        saved = None if keep is None else torch.empty_like(y)
        convolve(
            x,
            call.weight.permute(0, 2, 3, 1),
            y,
            s_out,
            call.index,
            (*call.stride, *call.padding, *call.dilation),
            bias=call.bias,
            gate_bias=call.gate_bias,
            saved=saved,
            save_ungated=keep == "ungated",
        )
        return y, saved

    def conv2d_dx_path(self, call: ConvGradCall, channels_last: bool, whole_batch: bool) -> GradientPath:
        if policy.conv2d_dx_is_own(call, channels_last):
            return "product"
        return "fold" if whole_batch and call.groups == 1 else "unfused"

    def conv2d_dx(self, dz: Tensor, call: ConvGradCall, in_gates: Gates | None, out_gates: Gates | None) -> Tensor:
        dx = empty_channels_last(dz, call.x_shape[1], call.x_shape[2:])
        geometry = (*call.stride, *call.padding, *call.dilation)
        convolve(dz, call.weight.permute(1, 2, 3, 0), dx, None, call.index, geometry, transposed=True)
        return dx


CUDA = CudaPrimitives()


def gated_product(x: Tensor, call: LayerCall, y: Tensor, columns: int = 0) -> None:
    """The kernel with gates in its epilogue; x and y in the order of ``[rows, I]`` and ``[rows, O]``.

    columns: of a tile of y, 128, 192 or 256; 0 leaves the choice to the kernel.
    """
    x, weight, bias = map(_aligned, (x, call.weight.flatten(1).contiguous(), contiguous(call.bias)))
    options = (GATES[call.gate], call.gate_bias, False, columns)
    memory, index = call.memory.contiguous(), call.index.contiguous()
    torch.ops.memmod_cuda.linear_fused.default(x, weight, bias, y, memory, index, *options)


def _aligned(t: Tensor | None) -> Tensor | None:
    """At a multiple of 16 bytes."""
    return t if t is None or t.data_ptr() % 16 == 0 else t.clone()


def convolve(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    gates: Gates | None,
    index: Tensor,
    geometry: Sequence[int],
    *,
    bias: Tensor | None = None,
    gate_bias: bool = True,
    saved: Tensor | None = None,
    save_ungated: bool = False,
    relu: bool = False,
    transposed: bool = False,
) -> None:
    """The kernel: x, y and saved ``[images, channels, H, W]`` in channels_last, weight ``[units, kH, kW, inputs]``."""
    memory, gate = (None, 0) if gates is None else (gates.memory, GATES[gates.gate])
    tf32 = x.dtype is torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32"
    torch.ops.memmod_cuda.conv2d.default(
        x.permute(0, 2, 3, 1),
        weight.contiguous(),
        contiguous(bias),
        y.permute(0, 2, 3, 1),
        None if saved is None else saved.permute(0, 2, 3, 1),
        memory,
        index.contiguous(),
        gate,
        gate_bias,
        save_ungated,
        relu,
        transposed,
        tf32,
        list(geometry),
    )
