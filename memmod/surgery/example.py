"""The example input that a model is observed on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from memmod.errors import ModelError


@dataclass(frozen=True)
class Example:
    """The example input: a batch of `batch` samples as the model takes it."""

    args: tuple
    kwargs: dict
    batch: int

    @classmethod
    def of(cls, value: Any) -> Example:
        """From a tensor, a tuple of positional arguments, or a dict of keyword arguments.

        Raises:
            ModelError: no tensor, fewer than 2 samples, or values that are not finite.
        """
        args, kwargs = (
            ((), value)
            if isinstance(value, dict)
            else (tuple(value), {})
            if isinstance(value, (tuple, list))
            else ((value,), {})
        )
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if not tensors or tensors[0].dim() == 0:
            raise ModelError(
                f"example_input holds no batch of tensors: {type(value).__name__}; pass [B, ...] with B >= 2"
            )
        first = tensors[0]
        if first.shape[0] < 2:
            raise ModelError(
                f"example_input has shape {tuple(first.shape)}: at least 2 samples are needed, to tell which "
                "rows of a layer belong to which sample"
            )
        if first.is_floating_point() and not torch.isfinite(first.float()).all():
            raise ModelError(
                f"example_input of shape {tuple(first.shape)} holds NaN or infinite values, which hide what a sample "
                "changes: pass finite values"
            )
        return cls(tree_map(_ordinary, args), tree_map(_ordinary, kwargs), first.shape[0])

    def with_sample_changed(self, sample: int) -> Example:
        """The same example with other content in one sample.

        Whole numbers stay within the values that they have where that changes anything.

        Raises:
            ModelError: samples without content.
        """
        generator = torch.Generator().manual_seed(1)
        first = self.tensors[0]

        def change(t: Tensor) -> Tensor:
            changed = _with_row(t, sample, _varied(t, sample, generator, even_constant=t is first))
            # A constant beside the input is a mask, say, and stays as it is; the input itself has to change.
            unchanged = t is first and torch.equal(changed, t)
            return _with_row(t, sample, _forced(t, sample)) if unchanged else changed

        if not first.numel():
            raise ModelError(f"example_input has shape {tuple(first.shape)}, so it has no content: pass larger samples")
        return self._map(change)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Example:
        """The same example with every tensor changed, whatever its shape."""

        def changed(t: Any) -> Any:
            return change(t) if isinstance(t, Tensor) else t

        return Example(tree_map(changed, self.args), tree_map(changed, self.kwargs), self.batch)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Example:
        def per_sample(t: Any) -> Any:
            fits = isinstance(t, Tensor) and t.dim() > 0 and t.shape[0] == self.batch
            return change(t) if fits else t

        return Example(tree_map(per_sample, self.args), tree_map(per_sample, self.kwargs), self.batch)

    def to(self, device: torch.device | str) -> Example:
        """An example whose tensors are on a device."""
        args, kwargs = tree_map(lambda t: t.to(device) if isinstance(t, Tensor) else t, (self.args, self.kwargs))
        return Example(args, kwargs, self.batch)

    def with_samples(self, samples: list[int]) -> Example:
        """An example of the given samples, in that order."""
        chosen = self._map(lambda t: t[samples])
        return Example(chosen.args, chosen.kwargs, len(samples))

    @property
    def tensors(self) -> list[Tensor]:
        """Its tensors, in order."""
        return [t for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)]

    @property
    def shape(self) -> tuple[int, ...]:
        """The first tensor's shape without the batch."""
        return tuple(self.tensors[0].shape[1:])

    @property
    def is_constant(self) -> bool:
        """Whether the first tensor has one value throughout."""
        return _is_constant(self.tensors[0])


def _ordinary(t: Any) -> Any:
    """A tensor made in inference mode as an ordinary one, which in-place operations accept outside of that mode."""
    if not isinstance(t, Tensor) or not t.is_inference():
        return t
    with torch.inference_mode(False):
        return t.clone()


def _with_row(t: Tensor, sample: int, row: Tensor) -> Tensor:
    t = t.clone(memory_format=torch.contiguous_format) if 0 in t.stride() else t.clone()
    t[sample] = row
    return t


def _varied(t: Tensor, sample: int, generator: torch.Generator, even_constant: bool) -> Tensor:
    """Noise of the tensor's own mean and spread; whole numbers and masks in the opposite order."""
    if not t.is_floating_point():
        return t[sample].flatten().flip(0).view_as(t[sample])
    values = t.float()
    constant = _is_constant(values)
    if not torch.isfinite(values).all() or (constant and not even_constant):
        return t[sample]
    # A constant has no spread of its own: its magnitude, or 1 for zeros.
    scale = values.mean().abs() if constant else values.std()
    noise = torch.randn(t[sample].shape, generator=generator, dtype=torch.float32).to(t.device)
    return (noise * (scale if scale > 0 else 1.0) + values.mean()).to(t.dtype)


def _is_constant(t: Tensor) -> bool:
    return bool((t == t.flatten()[:1]).all())


def _forced(t: Tensor, sample: int) -> Tensor:
    """What reading backwards left as it is: another sample's content, else the next smaller numbers."""
    own, other = t[sample], t[(sample + 1) % len(t)]
    if not torch.equal(other, own):
        return other
    if t.dtype == torch.bool:
        return ~own
    # One less is an index that a table with this value has; 0 has only its upper neighbour.
    return own + 1 if t.is_complex() else torch.where(own > 0, own - 1, own + 1)


def default_example(model: nn.Module) -> Example:
    """Two random images of the size that the model says it takes (timm's `pretrained_cfg` / `default_cfg`).

    Raises:
        ModelError: the model says no size.
    """
    for attribute in ("pretrained_cfg", "default_cfg"):
        size = (getattr(model, attribute, None) or {}).get("input_size")
        if size is not None:
            first = next(model.parameters(), torch.empty(0))
            return Example.of(random_images((2, *size), first))
    raise ModelError(
        f"{type(model).__name__} does not say its input size: pass example_input, a batch of at least 2 samples as the "
        "model takes it, e.g. torch.randn(2, 3, 224, 224)"
    )


def random_images(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Normal noise ``shape`` from a fixed seed, of the dtype and device of `like`."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)
