"""Splits of a data set: images ``[N, C, H, W]`` of one kind (training, test, ...) with their labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import torch
from torch import Tensor

from memmod.errors import DataError


class Split:
    """Images of one kind (training, test, ...) with their labels.

    `labels` is int64 ``[N]``; `batch(indices)` gives normalised fp32 images ``[n, C, H, W]``.
    """

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """The images at `indices` (int64 ``[n]``): normalised fp32 ``[n, C, H, W]``."""
        raise NotImplementedError

    def pixels(self, indices: Tensor) -> Tensor:
        """The images at `indices` (int64 ``[n]``) as people see them: uint8 ``[n, C, H, W]``."""
        raise NotImplementedError

    def subset(self, indices: Tensor) -> Split:
        """The split of the images at `indices` (int64 ``[n]``), in that order."""
        raise NotImplementedError

    @property
    def black(self) -> Tensor:
        """What a black pixel is in `batch`'s images: ``[C, 1, 1]``."""
        raise NotImplementedError

    @property
    def white(self) -> Tensor:
        """What a white pixel is in `batch`'s images: ``[C, 1, 1]``; a pixel in 0..255 lies between in proportion."""
        raise NotImplementedError

    def check(self, on_image: Callable[[int, int], None] | None = None) -> None:
        """Find what is wrong with the images before they are needed; images in memory have been read already.

        Args:
            on_image: called with (images checked, images in all) now and then, for progress.

        Raises:
            DataError: images that cannot be used, by name.
        """

    def fingerprint(self) -> str:
        """A hash of the images and labels, by which a result that depends on them is known again."""
        raise NotImplementedError

    def holdout(self, fraction: float, seed: int = 0, class_names: Sequence[str] | None = None) -> tuple[Split, Split]:
        """(rest, held): `fraction` of every class, at least one image each, set apart; deterministic by `seed`.

        Raises:
            DataError: `fraction` is not in (0, 1), or a class has fewer than 2 images; `class_names` name it.
        """
        rest, held = stratified(self.labels, fraction, seed, class_names)
        return self.subset(rest), self.subset(held)


class TensorSplit(Split):
    """`images` in memory: uint8 or fp32 ``[N, C, H, W]``, normalised as ``(x / scale - mean) / std`` when taken."""

    def __init__(
        self, images: Tensor, labels: Tensor, scale: float, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.images = images
        self.labels = labels.to(torch.int64)
        self._factor = 1.0 / (scale * torch.tensor(std)).view(1, -1, 1, 1)
        self._offset = (torch.tensor(mean) / torch.tensor(std)).view(1, -1, 1, 1)
        self._normalisation = (scale, mean, std)

    def batch(self, indices: Tensor) -> Tensor:
        return self.images[indices].float() * self._factor - self._offset

    def pixels(self, indices: Tensor) -> Tensor:
        return (self.images[indices].float() * (255 / self._normalisation[0])).round().clamp(0, 255).to(torch.uint8)

    @property
    def black(self) -> Tensor:
        return -self._offset[0]

    @property
    def white(self) -> Tensor:
        return self._normalisation[0] * self._factor[0] - self._offset[0]

    def fingerprint(self) -> str:
        parts = [self.images, self.labels, self._factor, self._offset]
        return hash_of(*(t.contiguous().view(torch.uint8).numpy().tobytes() for t in parts), str(self.images.shape))

    def subset(self, indices: Tensor) -> TensorSplit:
        return TensorSplit(self.images[indices], self.labels[indices], *self._normalisation)


@dataclass(frozen=True)
class Dataset:
    """A data set: its `name`, `train` and `test` splits, class names, and `input_shape` ``(C, H, W)`` of an image."""

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    input_shape: tuple[int, int, int]

    @property
    def num_classes(self) -> int:
        """C, the number of class names."""
        return len(self.class_names)


def hash_of(*parts: bytes | str) -> str:
    """A short SHA-256 of parts, each with its length."""
    digest = sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:32]


def stratified(
    labels: Tensor, fraction: float, seed: int, class_names: Sequence[str] | None = None
) -> tuple[Tensor, Tensor]:
    """(rest, held) indices, each sorted: `fraction` of each class of labels ``[N]``, at least one image on either side.

    Raises:
        DataError: `fraction` is not in (0, 1), or a class has fewer than 2 images; `class_names` name it.
    """
    if not 0.0 < fraction < 1.0:
        raise DataError(f"the fraction to hold out is {fraction}; it must lie between 0 and 1")
    generator = torch.Generator().manual_seed(seed)
    rest, held = [], []
    for number in labels.unique().tolist():
        members = (labels == number).nonzero().squeeze(1)
        if len(members) < 2:
            raise DataError(
                f"class {_class(number, class_names)} has 1 image; some of each class are held out, which needs at "
                "least 2: add images, or take the class away"
            )
        members = members[torch.randperm(len(members), generator=generator)]
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held.append(members[:count])
        rest.append(members[count:])
    return torch.cat(rest).sort().values, torch.cat(held).sort().values


def at_most(labels: Tensor, count: int, seed: int) -> Tensor:
    """Sorted indices of about `count` of the labels ``[N]``, of each class its share, at least one."""
    if len(labels) <= count:
        return torch.arange(len(labels))
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for number in labels.unique().tolist():
        members = (labels == number).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=generator)]
        chosen.append(members[: max(round(count / len(labels) * len(members)), 1)])
    return torch.cat(chosen).sort().values


def check_classes(what: str, labels: Tensor, class_names: Sequence[str], at_least: int = 1) -> None:
    """Check that labels ``[N]`` are of `class_names`, with `at_least` images of each.

    Args:
        what: whose labels these are, for the message.

    Raises:
        DataError: fewer than 2 classes, labels out of range, or classes with too few images, by name.
    """
    classes = len(class_names)
    if classes < 2:
        raise DataError(f"{what} has {classes} class; to forget one, at least 2 are needed")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(
            f"{what} has labels from {int(labels.min())} to {int(labels.max())}; they must lie in 0 to {classes - 1}"
        )
    counts = torch.bincount(labels, minlength=classes)
    missing = (counts == 0).nonzero().flatten().tolist()
    if missing:
        raise DataError(
            f"{what} has no images of class {_shown(missing, class_names)}: every class to be forgotten needs some; "
            "add them, or use a base without these classes"
        )
    few = (counts < at_least).nonzero().flatten().tolist()
    if few:
        raise DataError(
            f"{what} has fewer than {at_least} images of class {_shown(few, class_names)}: unlearning trains on some "
            "images of each class and holds others out; add images, or take the class away"
        )


def without_classes(dataset: Dataset, classes: Collection[int]) -> Dataset:
    """The data set without the training images of some classes; labels and the test split stay as they are.

    Raises:
        DataError: a class that stays has no training images, or fewer than 2 stay.
    """
    own = torch.isin(dataset.train.labels, torch.tensor(sorted(classes)))
    train = dataset.train.subset((~own).nonzero().flatten())
    names = [name for c, name in enumerate(dataset.class_names) if c not in classes]
    renumbered = torch.tensor([names.index(name) if name in names else -1 for name in dataset.class_names])
    check_classes(f"the retained training images of {dataset.name}", renumbered[train.labels], names)
    return replace(dataset, train=train)


def batches_of(order: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """`order` ``[N]`` in parts of `batch_size`; a last one of a single image joins the part before.

    A batch of one image has no statistics of its own, which BatchNorm and re-estimated statistics need.
    """
    parts = order.split(batch_size)
    if batch_size > 1 and len(parts) > 1 and len(parts[-1]) == 1:
        return (*parts[:-2], torch.cat(parts[-2:]))
    return parts


def _class(number: int, class_names: Sequence[str] | None) -> str:
    return str(number) if class_names is None else f"{number} ({class_names[number]!r})"


def _shown(numbers: Sequence[int], class_names: Sequence[str]) -> str:
    shown = ", ".join(_class(number, class_names) for number in numbers[:8])
    return shown + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
