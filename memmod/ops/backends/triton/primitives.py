"""The Triton kernels (memmod.kernels) as primitives of the GPU's ops: linear layers and 1x1 convolutions by one
product, k x k ones in channels_last by an implicit one, both with the gates inside of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from memmod.kernels.conv2d import conv2d
from memmod.kernels.gates import GateTable, gate_table
from memmod.kernels.linear import matmul
from memmod.kernels.output import launch
from memmod.kernels.sums import class_sums
from memmod.ops.backends import gpu_policy
from memmod.ops.backends.gpu.primitives import Gates, GradientPath, Keep, Primitives, contiguous
from memmod.ops.backends.gpu_policy import Path
from memmod.ops.calls import ConvCall, ConvGradCall, LinearCall, LinearGradCall
from memmod.ops.layout import Channels, empty_channels_last


class TableGates(Gates):
    """Gates whose table is made when a kernel first reads it: a memory's gradient alone needs none."""

    @functools.cached_property
    def gate_table(self) -> GateTable:
        return gate_table(self.memory, self.index, self.gate)


class TritonPrimitives(Primitives):
    gates_type = TableGates

    def one_pass(
        self,
        x: Tensor,
        view: Channels,
        gates: TableGates | None,
        *,
        samples: int,
        other: Tensor | None = None,
        bias: Tensor | None = None,
        out: Tensor | None = None,
        bias_inside: bool = False,
        with_sums: bool = False,
    ) -> Tensor | None:
        options = {"other": other, "bias": contiguous(bias), "bias_inside": bias_inside, "out": out}
        return launch(x, view, _table(gates), samples=samples, with_sums=with_sums, **options)

    def class_sums(self, a: Tensor, b: Tensor | None, gates: Gates) -> Tensor:
        return class_sums(a, b, gates.memory, gates.index, gates.gate)

    def linear_path(self, call: LinearCall, whole_batch: bool) -> Path:
        units, inputs = call.weight.shape
        return gpu_policy.linear_path(call.x.device, inputs, call.x.numel() // max(1, inputs) * units, whole_batch)

    def linear(
        self, call: LinearCall, s_in: TableGates | None, s_out: TableGates | None, keep: Keep | None
    ) -> tuple[Tensor, Tensor | None]:
        rows, weight = call.x.flatten(0, -2).contiguous(), call.weight.contiguous()
        y = rows.new_empty(*call.x.shape[:-1], weight.shape[0])
        return y, matmul(rows, weight, y, b_columns=True, **_epilogue(call, s_in, s_out, keep))

    def linear_dx_path(self, call: LinearGradCall, whole_batch: bool) -> Path:
        return gpu_policy.linear_path(call.dy.device, call.dy.shape[-1], math.prod(call.x_shape), whole_batch)

    def linear_dx(
        self, dz: Tensor, call: LinearGradCall, in_gates: TableGates | None, out_gates: TableGates | None
    ) -> Tensor:
        dx = dz.new_empty(dz.shape[0], call.x_shape[-1])
        gates = {"in_gates": _table(in_gates), "out_gates": _table(out_gates)}
        matmul(dz, call.weight.contiguous(), dx, b_columns=False, **gates)
        return dx

    def conv2d_path(self, call: ConvCall, size: Sequence[int], channels_last: bool, whole_batch: bool) -> Path:
        return _conv2d_path(call, call.x.shape[0] * size[0] * size[1], channels_last, whole_batch)

    def conv2d(
        self, call: ConvCall, size: Sequence[int], s_in: TableGates | None, s_out: TableGates | None, keep: Keep | None
    ) -> tuple[Tensor, Tensor | None]:
        x, weight = call.x, call.weight
        options = _epilogue(call, s_in, s_out, keep)
        if not _pointwise(call):
            geometry = {"stride": call.stride, "padding": call.padding, "dilation": call.dilation}
            return conv2d(x, weight.permute(0, 2, 3, 1).contiguous(), size, **geometry, **options)
        y = empty_channels_last(x, weight.shape[0], size)
        return y, _pointwise_product(x, weight, y, b_columns=True, **options)

    def conv2d_dx_path(self, call: ConvGradCall, channels_last: bool, whole_batch: bool) -> GradientPath:
        pixels = call.dy.shape[0] * call.dy.shape[2] * call.dy.shape[3]
        path = _conv2d_path(call, pixels, channels_last, whole_batch)
        # The gradient of a convolution with stride 1 is a convolution too.
        if path == "fused" and (max(call.stride) > 1 or min(_padding_of_dx(call)) < 0):
            return "unfused"
        return path

    def conv2d_dx(
        self, dz: Tensor, call: ConvGradCall, in_gates: TableGates | None, out_gates: TableGates | None
    ) -> Tensor:
        gates = {"in_gates": _table(in_gates), "out_gates": _table(out_gates)}
        if not _pointwise(call):
            turned = call.weight.flip(2, 3).permute(1, 2, 3, 0).contiguous()
            geometry = {"stride": (1, 1), "padding": _padding_of_dx(call), "dilation": call.dilation}
            return conv2d(dz, turned, call.x_shape[2:], **geometry, **gates)[0]
        dx = empty_channels_last(dz, call.x_shape[1], call.x_shape[2:])
        _pointwise_product(dz, call.weight, dx, b_columns=False, **gates)
        return dx


TRITON = TritonPrimitives()


def _table(gates: TableGates | None) -> GateTable | None:
    return None if gates is None else gates.gate_table


def _epilogue(
    call: LinearCall | ConvCall, s_in: TableGates | None, s_out: TableGates | None, keep: Keep | None
) -> dict[str, object]:
    """What a product of the forward does beside its sums."""
    return {
        "bias": contiguous(call.bias),
        "in_gates": _table(s_in),
        "out_gates": _table(s_out),
        "gate_bias": call.gate_bias,
        "keep": keep,
    }


def _conv2d_path(call: ConvCall | ConvGradCall, pixels: int, channels_last: bool, whole_batch: bool) -> Path:
    units, inputs, kernel_h, kernel_w = call.weight.shape
    product = call.groups == 1 and channels_last
    if product and _pointwise(call):
        return gpu_policy.linear_path(call[0].device, inputs, pixels * units, whole_batch)
    path = gpu_policy.conv_path(call[0].device, inputs, kernel_h * kernel_w, units, pixels, whole_batch)
    if path == "fused":
        return "fused" if product else "unfused"
    return path if call.groups == 1 else "unfused"


def _pointwise(call: ConvCall | ConvGradCall) -> bool:
    return call.weight.shape[2:] == (1, 1) and max(call.stride) == 1 and max(call.padding) == 0


def _pointwise_product(x: Tensor, weight: Tensor, y: Tensor, **options: object) -> Tensor | None:
    """`matmul` of the pixels of a channels_last x."""
    pixels = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    weight = weight.reshape(weight.shape[:2]).contiguous()
    return matmul(pixels, weight, y, tf32=torch.backends.cudnn.conv, **options)


def _padding_of_dx(call: ConvGradCall) -> list[int]:
    return [call.dilation[d] * (call.weight.shape[2 + d] - 1) - call.padding[d] for d in (0, 1)]
