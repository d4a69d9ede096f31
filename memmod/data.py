"""Data sets as splits of images ``[N, C, H, W]`` with labels: embedded, in IDX or CIFAR files, or in folders."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memmod.errors import DataError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
DEFAULT_ROOT = Path("data")
FASHION_CLASSES = (
    "t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff"}
NAMES = ("digits", "fashion-mnist", "mnist", "cifar10", "cifar100", "imagenet", "folder:PATH")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEFAULT_IMAGE_SIZE = 224
# timm's and torchvision's evaluation crop: the resized image is 256/224 of the crop.
RESIZE_RATIO = 256 / 224
DECODING_THREADS = 4


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

    def subset(self, indices: Tensor) -> Split:
        """The split of the images at `indices` (int64 ``[n]``), in that order."""
        raise NotImplementedError

    def holdout(self, fraction: float, seed: int = 0) -> tuple[Split, Split]:
        """(rest, held): `fraction` of every class, at least one image each, set apart; deterministic by `seed`.

        Raises:
            DataError: `fraction` is not in (0, 1), or a class has fewer than 2 images.
        """
        rest, held = stratified(self.labels, fraction, seed)
        return self.subset(rest), self.subset(held)


class TensorSplit(Split):
    """Images in memory: uint8 or fp32 ``[N, C, H, W]``, normalised as ``(x / scale - mean) / std`` when taken."""

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

    def subset(self, indices: Tensor) -> TensorSplit:
        return TensorSplit(self.images[indices], self.labels[indices], *self._normalisation)


class FileSplit(Split):
    """Images in files, decoded when taken: resized, centre-cropped to `image_size`, normalised as ImageNet's.

    Raises:
        DataError: a file cannot be decoded; it is named.
    """

    def __init__(self, paths: Sequence[str], labels: Tensor, image_size: int) -> None:
        self.paths = list(paths)
        self.labels = labels.to(torch.int64)
        self.image_size = image_size

    def batch(self, indices: Tensor) -> Tensor:
        paths = [self.paths[i] for i in indices.tolist()]
        if not paths:
            return torch.empty(0, 3, self.image_size, self.image_size)
        with ThreadPoolExecutor(DECODING_THREADS) as pool:
            return torch.stack(list(pool.map(self._decode, paths)))

    def subset(self, indices: Tensor) -> FileSplit:
        return FileSplit([self.paths[i] for i in indices.tolist()], self.labels[indices], self.image_size)

    def _decode(self, path: str) -> Tensor:
        from PIL import Image
        from torchvision.transforms import functional as transforms

        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"the image {path} is damaged ({error}): replace it or take it away") from error
        image = transforms.resize(image, round(self.image_size * RESIZE_RATIO))
        image = transforms.center_crop(image, [self.image_size, self.image_size])
        return transforms.normalize(transforms.to_tensor(image), IMAGENET_MEAN, IMAGENET_STD)


@dataclass(frozen=True)
class Dataset:
    """A data set: `train` and `test` splits, class names, and the shape ``(C, H, W)`` of an image."""

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    input_shape: tuple[int, int, int]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def load_data(
    spec: str = "digits",
    root: str | os.PathLike | None = None,
    image_size: int | None = None,
    download: bool = False,
) -> Dataset:
    """Load a data set by name.

    Args:
        spec: "digits" (scikit-learn's, embedded), "fashion-mnist", "mnist", "cifar10", "cifar100", "imagenet", or
            "folder:PATH" (PATH/train/CLASS/*, PATH/test/CLASS/*; or PATH/CLASS/*, of which a fifth becomes the test
            split).
        root: where the files are. fashion-mnist: a folder of IDX files (default: Debian's package), or torchvision's
            root; the others: torchvision's root (default: ./data).
        image_size: side in pixels of the images of imagenet and folder (default 224).
        download: let torchvision download what it can (not imagenet, not folders).

    Raises:
        DataError: unknown name; files missing (says where to get them), damaged or cut short; classes that differ.
    """
    if spec.startswith("folder:"):
        return _folder(Path(spec.removeprefix("folder:")), image_size or DEFAULT_IMAGE_SIZE)
    loaders: dict[str, Callable[[], Dataset]] = {
        "digits": _digits,
        "fashion-mnist": lambda: _fashion_mnist(root, download),
        "mnist": lambda: _mnist(root, download),
        "cifar10": lambda: _cifar("CIFAR10", root, download),
        "cifar100": lambda: _cifar("CIFAR100", root, download),
        "imagenet": lambda: _imagenet(root, image_size or DEFAULT_IMAGE_SIZE),
    }
    if spec not in loaders:
        raise DataError(f"unknown data set {spec!r}; it must be one of {', '.join(NAMES)}")
    return loaders[spec]()


def check_class_names(dataset: Dataset, expected: Sequence[str]) -> None:
    """Check that a data set has the classes that a model was trained on, in the same order.

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


def stratified(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """(rest, held) indices, each sorted: `fraction` of each class of labels ``[N]``, at least one image on either side.

    Raises:
        DataError: `fraction` is not in (0, 1), or a class has fewer than 2 images.
    """
    if not 0.0 < fraction < 1.0:
        raise DataError(f"the fraction to hold out is {fraction}; it must lie between 0 and 1")
    generator = torch.Generator().manual_seed(seed)
    rest, held = [], []
    for number in labels.unique().tolist():
        members = (labels == number).nonzero().squeeze(1)
        if len(members) < 2:
            raise DataError(f"class {number} has {len(members)} image; holding some out needs at least 2")
        members = members[torch.randperm(len(members), generator=generator)]
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held.append(members[:count])
        rest.append(members[count:])
    return torch.cat(rest).sort().values, torch.cat(held).sort().values


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(digits.target).to(torch.int64)
    train, test = stratified(labels, 0.5, seed=0)
    whole = TensorSplit(images, labels, 16.0, (0.3053,), (0.3761,))
    return Dataset("digits", whole.subset(train), whole.subset(test), tuple("0123456789"), (1, 8, 8))


def _fashion_mnist(root: str | os.PathLike | None, download: bool) -> Dataset:
    folders = [DEBIAN_FASHION_MNIST, DEFAULT_ROOT / "FashionMNIST" / "raw"]
    if root is not None:
        folders = [Path(root), Path(root) / "FashionMNIST" / "raw"]
    if download and not any(_has_idx(folder) for folder in folders):
        _torchvision("FashionMNIST", root or DEFAULT_ROOT, "fashion-mnist", download=True)
    hint = (
        "install Debian's package dataset-fashion-mnist, give the folder of the four IDX files as root "
        "(--data-root), or let torchvision download it (--download)"
    )
    splits = _idx_splits("fashion-mnist", folders, hint, (0.2860,), (0.3530,))
    return Dataset("fashion-mnist", *splits, FASHION_CLASSES, (1, 28, 28))


def _mnist(root: str | os.PathLike | None, download: bool) -> Dataset:
    base = Path(root or DEFAULT_ROOT)
    folders = [base, base / "MNIST" / "raw"]
    if download and not any(_has_idx(folder) for folder in folders):
        _torchvision("MNIST", base, "mnist", download=True)
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
    """A uint8 tensor with `dims` dimensions from an IDX file, plain or gzipped.

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


def _cifar(kind: str, root: str | os.PathLike | None, download: bool) -> Dataset:
    name = kind.lower()
    parts = [_torchvision(kind, root or DEFAULT_ROOT, name, train=train, download=download) for train in (True, False)]
    mean, std = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    if kind == "CIFAR100":
        mean, std = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    splits = [
        TensorSplit(torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets), 255.0, mean, std)
        for part in parts
    ]
    return Dataset(name, splits[0], splits[1], tuple(parts[0].classes), (3, 32, 32))


def _torchvision(kind: str, root: str | os.PathLike, name: str, **options: Any) -> Any:
    from torchvision import datasets

    try:
        return getattr(datasets, kind)(str(root), **options)
    except Exception as error:
        advice = "it may be damaged: delete it there and" if Path(root).is_dir() else "put it there, or"
        raise DataError(
            f"{name} cannot be loaded from {root} ({type(error).__name__}: {error}): {advice} let torchvision "
            "download it (--download)"
        ) from error


def _imagenet(root: str | os.PathLike | None, image_size: int) -> Dataset:
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


def _folder(path: Path, image_size: int) -> Dataset:
    if not path.is_dir():
        raise DataError(f"there is no data folder {path}: pass folder:PATH with PATH/train/CLASS/ and PATH/test/CLASS/")
    name, shape = f"folder:{path}", (3, image_size, image_size)
    train = path / "train"
    test = next((path / kind for kind in ("test", "val") if (path / kind).is_dir()), None)
    if train.is_dir() != (test is not None):
        raise DataError(f"{path} has only one of train/ and test/ (or val/): add the other, or keep the classes alone")
    if test is None:
        files, labels, names = _class_folders(path)
        rest, held = stratified(labels, 0.2, seed=0)
        whole = FileSplit(files, labels, image_size)
        return Dataset(name, whole.subset(rest), whole.subset(held), names, shape)
    files, labels, names = _class_folders(train)
    test_files, test_labels, test_names = _class_folders(test)
    if names != test_names:
        different = sorted(set(names) ^ set(test_names))
        raise DataError(f"{train} and {test} differ in their classes ({_names(different)}): give both the same folders")
    return Dataset(
        name, FileSplit(files, labels, image_size), FileSplit(test_files, test_labels, image_size), names, shape
    )


def _class_folders(path: Path) -> tuple[list[str], Tensor, tuple[str, ...]]:
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(names) < 2:
        raise DataError(f"{path} holds {len(names)} class folders; at least 2 are needed, each with its images")
    files: list[str] = []
    labels: list[int] = []
    for number, name in enumerate(names):
        found = sorted(str(file) for file in (path / name).rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise DataError(
                f"{path / name} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}): add some, "
                "or take the folder away"
            )
        files += found
        labels += [number] * len(found)
    return files, torch.tensor(labels), tuple(names)


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
