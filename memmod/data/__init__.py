"""Data sets as splits of images ``[N, C, H, W]`` with labels: embedded, in IDX or CIFAR files, or in folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from memmod.data.file_split import FileSplit
from memmod.data.folders import load_folder
from memmod.data.idx import IDX_FILES, fashion_mnist, mnist, read_idx
from memmod.data.splits import (
    Dataset,
    Split,
    TensorSplit,
    at_most,
    batches_of,
    check_classes,
    stratified,
    without_classes,
)
from memmod.data.torchvision_sets import cifar, imagenet
from memmod.errors import DataError

__all__ = [
    "IDX_FILES",
    "NAMES",
    "Dataset",
    "FileSplit",
    "Split",
    "TensorSplit",
    "at_most",
    "batches_of",
    "check_class_names",
    "check_classes",
    "load_data",
    "read_idx",
    "stratified",
    "without_classes",
]

NAMES = ("digits", "fashion-mnist", "mnist", "cifar10", "cifar100", "imagenet", "folder:PATH")
"""What `load_data` takes."""
DEFAULT_IMAGE_SIZE = 224


def load_data(
    spec: str = "digits",
    root: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    download: bool = False,
) -> Dataset:
    """Load a data set by name.

    Args:
        spec: "digits" (scikit-learn's, embedded), "fashion-mnist", "mnist", "cifar10", "cifar100", "imagenet", or
            "folder:PATH" (PATH/train/CLASS/*, PATH/test/CLASS/*; or PATH/CLASS/*, of which a fifth becomes the test
            split; `memmod.data.folders.load_folder` has the details).
        root: where the files are. fashion-mnist: a folder of IDX files (default: Debian's package), or torchvision's
            root; the others: torchvision's root (default: ./data).
        image_size: side in pixels of the images of imagenet and folder (default 224).
        download: let torchvision download what it can (not imagenet, not folders).

    Raises:
        DataError: unknown name; files missing (says where to get them), damaged or cut short; classes that differ;
            folders that are not clearly splits or classes. Image files are opened by `Split.check` and `Split.batch`.
    """
    if spec.startswith("folder:"):
        return load_folder(Path(spec.removeprefix("folder:")), image_size or DEFAULT_IMAGE_SIZE)
    loaders: dict[str, Callable[[], Dataset]] = {
        "digits": _digits,
        "fashion-mnist": lambda: fashion_mnist(root, download),
        "mnist": lambda: mnist(root, download),
        "cifar10": lambda: cifar("CIFAR10", root, download),
        "cifar100": lambda: cifar("CIFAR100", root, download),
        "imagenet": lambda: imagenet(root, image_size or DEFAULT_IMAGE_SIZE),
    }
    if spec not in loaders:
        raise DataError(f"unknown data set {spec!r}; it must be one of {', '.join(NAMES)}")
    return loaders[spec]()


def check_class_names(dataset: Dataset, expected: Sequence[str]) -> None:
    """Check that a data set has the `expected` classes, those that a model was trained on, in the same order.

    Raises:
        DataError: they differ.
    """
    if tuple(expected) != dataset.class_names:
        missing = [name for name in expected if name not in dataset.class_names]
        extra = [name for name in dataset.class_names if name not in expected]
        what = "; ".join(
            [f"it lacks {_names(missing)}"] * bool(missing)
            + [f"the model does not know {_names(extra)}"] * bool(extra)
            + ["their order differs"] * (not missing and not extra)
        )
        raise DataError(f"the data set {dataset.name} has other class names than the model: {what}")


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(digits.target).to(torch.int64)
    train, test = stratified(labels, 0.5, seed=0)
    whole = TensorSplit(images, labels, 16.0, (0.3053,), (0.3761,))
    return Dataset("digits", whole.subset(train), whole.subset(test), tuple("0123456789"), (1, 8, 8))


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
