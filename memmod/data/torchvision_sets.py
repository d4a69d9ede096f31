"""Data sets that torchvision reads: CIFAR and ImageNet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from memmod.data.file_split import FileSplit
from memmod.data.splits import Dataset, TensorSplit
from memmod.errors import DataError

DEFAULT_ROOT = Path("data")


def cifar(kind: str, root: str | os.PathLike[str] | None, download: bool) -> Dataset:
    """CIFAR10 or CIFAR100, by torchvision. Raises DataError."""
    name = kind.lower()
    parts = [
        torchvision_set(kind, root or DEFAULT_ROOT, name, train=train, download=download) for train in (True, False)
    ]
    mean, std = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    if kind == "CIFAR100":
        mean, std = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    splits = [
        TensorSplit(torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets), 255.0, mean, std)
        for part in parts
    ]
    return Dataset(name, splits[0], splits[1], tuple(parts[0].classes), (3, 32, 32))


def imagenet(root: str | os.PathLike[str] | None, image_size: int) -> Dataset:
    """ImageNet's training and validation images, by torchvision. Raises DataError."""
    from torchvision import datasets

    base = Path(root or DEFAULT_ROOT / "imagenet")
    parts = []
    for split in ("train", "val"):
        try:
            parts.append(datasets.ImageNet(str(base), split=split))
        except Exception as error:
            raise DataError(
                f"imagenet cannot be loaded from {base} ({error}): put ILSVRC2012_devkit_t12.tar.gz and the train and "
                "val archives of image-net.org there (--data-root)"
            ) from error
    splits = [FileSplit([p for p, _ in part.samples], torch.tensor(part.targets), image_size) for part in parts]
    names = tuple(entry[0] for entry in parts[0].classes)
    names = tuple(
        f"{name} ({wnid})" if names.count(name) > 1 else name for name, wnid in zip(names, parts[0].wnids, strict=True)
    )
    return Dataset("imagenet", splits[0], splits[1], names, (3, image_size, image_size))


def torchvision_set(kind: str, root: str | os.PathLike[str], name: str, **options: Any) -> Any:
    """A data set of torchvision, by the name of its class. Raises DataError."""
    from torchvision import datasets

    try:
        return getattr(datasets, kind)(str(root), **options)
    except Exception as error:
        advice = "it may be damaged: delete it there and" if Path(root).is_dir() else "put it there, or"
        raise DataError(
            f"{name} cannot be loaded from {root} ({type(error).__name__}: {error}): {advice} let torchvision "
            "download it (--download)"
        ) from error
