"""What a GPU backend supplies: its kernels, and which products of a layer it computes by them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, TypeAlias

from torch import Tensor

from memmod.ops.backends.gpu_policy import Path
from memmod.ops.calls import ConvCall, ConvGradCall, LinearCall, LinearGradCall
from memmod.ops.layout import Channels

# What the backward needs beside y: the product behind its gate, or the one before it.
Keep: TypeAlias = Literal["gated", "ungated"]
# "product": the backend's own product without gates, and passes for those.
GradientPath: TypeAlias = Path | Literal["product"]


class Gates:
    """A memory and what each sample selects of it, as the kernels read them."""

    def __init__(self, memory: Tensor, index: Tensor, gate: str) -> None:
        """memory: fp32 ``[C, K]``; index: int64 ``[B]`` or ``[B, S]``."""
        self.memory = memory.contiguous()
        self.index = index.contiguous()
        self.gate = gate

    @property
    def samples(self) -> int:
        return self.index.shape[0]


class Primitives(ABC):
    """One backend's kernels.

    Paths follow from shapes, dtypes and layouts alone, never from values. `whole_batch`: one selection serves all
    samples, as `gpu_policy.whole_batch` says, and no gradient needs the product without its gates, so that these may go
    into the weight.
    """

    gates_type: type[Gates] = Gates

    def gates(self, memory: Tensor | None, index: Tensor, gate: str) -> Gates | None:
        """None without a memory."""
        return None if memory is None else self.gates_type(memory, index, gate)

    @abstractmethod
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
        """out = s ⊙ x (+ bias), or s ⊙ (x + bias) where it is inside, and the sums ``[B, P, K]`` of x ⊙ other (without
        other, of what is gated)."""

    @abstractmethod
    def class_sums(self, a: Tensor, b: Tensor | None, gates: Gates) -> Tensor:
        """dα ``[C, K]`` from each sample's terms a ⊙ b (a alone without b), of ``B·P·K`` numbers in that order."""

    @abstractmethod
    def linear_path(self, call: LinearCall, whole_batch: bool) -> Path: ...

    @abstractmethod
    def linear(
        self, call: LinearCall, s_in: Gates | None, s_out: Gates | None, keep: Keep | None
    ) -> tuple[Tensor, Tensor | None]:
        """(y ``[k·B, …, O]``, what `keep` asks for) where the path is "fused"."""

    @abstractmethod
    def linear_dx_path(self, call: LinearGradCall, whole_batch: bool) -> Path: ...

    def linear_dx(self, dz: Tensor, call: LinearGradCall, in_gates: Gates | None, out_gates: Gates | None) -> Tensor:
        """out_gates ⊙ ((in_gates ⊙ dz) W) for dz ``[rows, O]``, where the path is "fused"."""
        raise NotImplementedError

    @abstractmethod
    def conv2d_path(self, call: ConvCall, size: Sequence[int], channels_last: bool, whole_batch: bool) -> Path:
        """size: [H', W']; x is in the layout of y."""

    @abstractmethod
    def conv2d(
        self, call: ConvCall, size: Sequence[int], s_in: Gates | None, s_out: Gates | None, keep: Keep | None
    ) -> tuple[Tensor, Tensor | None]:
        """(y ``[k·B, O, H', W']``, what `keep` asks for) in channels_last, where the path is "fused"."""

    @abstractmethod
    def conv2d_dx_path(self, call: ConvGradCall, channels_last: bool, whole_batch: bool) -> GradientPath:
        """Where dweight is not asked for; dy is in the layout of dx."""

    @abstractmethod
    def conv2d_dx(self, dz: Tensor, call: ConvGradCall, in_gates: Gates | None, out_gates: Gates | None) -> Tensor:
        """As `linear_dx` for dz ``[k·B, O, H', W']`` in channels_last; without gates where the path is "product"."""


def contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()
