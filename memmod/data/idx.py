"""MNIST and Fashion-MNIST, read from IDX files, plain or gzipped."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from memmod.data.splits import Dataset, TensorSplit
from memmod.data.torchvision_sets import DEFAULT_ROOT, torchvision_set
from memmod.errors import DataError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    "t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
"""Of each split the files of images and of labels, as MNIST and Fashion-MNIST call them; with .gz behind or without."""


def fashion_mnist(root: str | os.PathLike[str] | None, download: bool) -> Dataset:
    """Fashion-MNIST, from IDX files. Raises DataError."""
    folders = [DEBIAN_FASHION_MNIST, DEFAULT_ROOT / "FashionMNIST" / "raw"]
    if root is not None:
        folders = [Path(root), Path(root) / "FashionMNIST" / "raw"]
    if download and not any(_has_idx(folder) for folder in folders):
        torchvision_set("FashionMNIST", root or DEFAULT_ROOT, "fashion-mnist", download=True)
    hint = (
        "install Debian's package dataset-fashion-mnist, give the folder of the four IDX files as root "
        "(--data-root), or let torchvision download it (--download)"
    )
    splits = _idx_splits("fashion-mnist", folders, hint, (0.2860,), (0.3530,))
    return Dataset("fashion-mnist", *splits, FASHION_CLASSES, (1, 28, 28))


def mnist(root: str | os.PathLike[str] | None, download: bool) -> Dataset:
    """MNIST, from IDX files. Raises DataError."""
    base = Path(root or DEFAULT_ROOT)
    folders = [base, base / "MNIST" / "raw"]
    if download and not any(_has_idx(folder) for folder in folders):
        torchvision_set("MNIST", base, "mnist", download=True)
    hint = "give the folder of the four IDX files as root (--data-root), or let torchvision download it (--download)"
    splits = _idx_splits("mnist", folders, hint, (0.1307,), (0.3081,))
    return Dataset("mnist", *splits, tuple("0123456789"), (1, 28, 28))


def _has_idx(folder: Path) -> bool:
    return _idx_path(folder, IDX_FILES["train"][0]) is not None


def _idx_path(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _idx_splits(
    name: str, folders: Sequence[Path], hint: str, mean: Sequence[float], std: Sequence[float]
) -> tuple[TensorSplit, TensorSplit]:
    folder = next((folder for folder in folders if _has_idx(folder)), None)
    if folder is None:
        looked = " and ".join(str(folder) for folder in folders)
        raise DataError(f"{name} is not here (looked in {looked}): {hint}")
    splits = []
    for kind, (image_name, label_name) in IDX_FILES.items():
        arrays = []
        for file_name, dims in ((image_name, 3), (label_name, 1)):
            path = _idx_path(folder, file_name)
            if path is None:
                raise DataError(f"{folder} has no {file_name} (or .gz), which {name} needs: {hint}")
            arrays.append(read_idx(path, dims))
        images, labels = arrays
        if len(images) != len(labels):
            raise DataError(f"{folder}: {len(images)} {kind} images but {len(labels)} labels: fetch {name} anew")
        if images.shape[1:] != (28, 28) or (len(labels) and int(labels.max()) > 9):
            raise DataError(
                f"{folder}: {kind} images of {tuple(images.shape[1:])} and labels up to {int(labels.max())} are not "
                f"{name}'s (28 × 28, 0 to 9): fetch it anew"
            )
        splits.append(TensorSplit(images.unsqueeze(1), labels, 255.0, mean, std))
    return splits[0], splits[1]


def read_idx(path: Path, dims: int) -> Tensor:
    """A uint8 tensor of `dims` dimensions (images ``[N, H, W]``, labels ``[N]``) from an IDX file, plain or gzipped.

    Raises:
        DataError: not IDX, of another type or number of dimensions, or of another length than its header says.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged or cut short ({error}): fetch it anew") from error
    header = 4 + 4 * dims
    if len(content) < header or content[:4] != bytes((0, 0, 8, dims)):
        raise DataError(f"{path} is not an IDX file of {dims}-dimensional bytes: fetch it anew")
    shape = struct.unpack(f">{dims}I", content[4:header])
    expected = 1
    for size in shape:
        expected *= size
    if len(content) - header != expected:
        raise DataError(
            f"{path} holds {len(content) - header} bytes, its header says {expected} for shape {shape}: fetch it anew"
        )
    return (
        torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(shape)
        if expected
        else (torch.empty(shape, dtype=torch.uint8))
    )
