"""A split whose images lie in files and are decoded when they are taken."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memmod.data.image_files import check_header, check_pixels, read_rgb, shown
from memmod.data.splits import Split, hash_of
from memmod.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# timm's and torchvision's evaluation crop: the resized image is 256/224 of the crop.
RESIZE_RATIO = 256 / 224
# An image this many times as long as wide is cropped before it is enlarged: 1 × 6,000 pixels would take gigabytes.
THIN = 16
DECODING_THREADS = 4
# Splits of up to so many pixels are decoded once to check them: some ten seconds a core; of larger ones the headers.
CHECKED_PIXELS = 1_000_000_000
_CHECKED_TOGETHER = 1000


class FileSplit(Split):
    """Images in files, decoded when taken: resized, centre-cropped to `image_size`, normalised as ImageNet's.

    `paths` and `labels` int64 ``[N]`` say which; a batch is ``[B, 3, image_size, image_size]``. Of a file with several
    frames the first is taken; `memmod.data.image_files.read_rgb` says how pixels become RGB.

    Raises:
        DataError: a file cannot be decoded; it is named.
    """

    def __init__(self, paths: Sequence[str], labels: Tensor, image_size: int) -> None:
        self.paths = list(paths)
        self.labels = labels.to(torch.int64)
        self.image_size = image_size

    def batch(self, indices: Tensor) -> Tensor:
        from torchvision.transforms import functional as transforms

        images = self._scaled(indices)
        return transforms.normalize(images, IMAGENET_MEAN, IMAGENET_STD) if len(images) else images

    def pixels(self, indices: Tensor) -> Tensor:
        return (self._scaled(indices) * 255).round().to(torch.uint8)

    def _scaled(self, indices: Tensor) -> Tensor:
        """Values in [0, 1], ``[n, 3, image_size, image_size]``."""
        paths = [self.paths[i] for i in indices.tolist()]
        if not paths:
            return torch.empty(0, 3, self.image_size, self.image_size)
        with ThreadPoolExecutor(DECODING_THREADS) as pool:
            return torch.stack(list(pool.map(self._decode, paths)))

    def subset(self, indices: Tensor) -> FileSplit:
        return FileSplit([self.paths[i] for i in indices.tolist()], self.labels[indices], self.image_size)

    @property
    def black(self) -> Tensor:
        return -(torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD)).view(-1, 1, 1)

    @property
    def white(self) -> Tensor:
        return ((1 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)).view(-1, 1, 1)

    def fingerprint(self) -> str:
        """Of the files' names, folders and sizes, not of their pixels, which would all have to be read."""
        described = [f"{Path(path).parent.name}/{Path(path).name} {os.stat(path).st_size}" for path in self.paths]
        return hash_of(*described, self.labels.numpy().tobytes(), str(self.image_size))

    def check(self, on_image: Callable[[int, int], None] | None = None) -> None:
        """Open every file, and decode the files of a split of up to `CHECKED_PIXELS` pixels.

        The headers tell missing and empty files, files of another kind, pixels without a scale and sizes above the
        limit; only decoding tells pixels that are cut short or damaged. In a larger split these come to light when
        their batch is taken. `on_image` is called with (files checked, files in all) now and then.

        Raises:
            DataError: files that cannot be used, by name.
        """
        pixels = sum(self._each(check_header, on_image))
        if pixels <= CHECKED_PIXELS:
            self._each(check_pixels, on_image)

    def _each(self, look: Callable[[str], int | None], on_image: Callable[[int, int], None] | None) -> list[int]:
        """What `look` returns for every file; what it raises for some is raised as one error, once all are seen."""

        def attempt(path: str) -> int | None | DataError:
            try:
                return look(path)
            except DataError as error:
                return error

        results: list[Any] = []
        with ThreadPoolExecutor(DECODING_THREADS) as pool:
            for start in range(0, len(self.paths), _CHECKED_TOGETHER):
                results += pool.map(attempt, self.paths[start : start + _CHECKED_TOGETHER])
                if on_image is not None:
                    on_image(len(results), len(self.paths))
        wrong = [number for number, result in enumerate(results) if isinstance(result, DataError)]
        if wrong:
            others = ", ".join(shown(self.paths[number]) for number in wrong[1:6])
            more = f"; {len(wrong) - 1} more cannot be read either: {others}" if others else ""
            raise DataError(f"{results[wrong[0]]}{more}{', ...' if len(wrong) > 6 else ''}")
        return results

    def _decode(self, path: str) -> Tensor:
        from torchvision.transforms import functional as transforms

        return transforms.to_tensor(centre_crop(read_rgb(path), self.image_size))


def centre_crop(image: Image, size: int) -> Image:
    """The middle of an image as `size` × `size` pixels, its shorter side first resized to `RESIZE_RATIO` times that."""
    from torchvision.transforms import functional as transforms

    short = round(size * RESIZE_RATIO)
    if max(image.size) > THIN * min(image.size):
        return _crop_first(image, size, short)
    return transforms.center_crop(transforms.resize(image, short), [size, size])


def _crop_first(image: Image, size: int, short: int) -> Image:
    """The same pixels, but for rounding, of which no others are computed."""
    from PIL.Image import Resampling

    shortest = min(image.size)
    resized = [short if side == shortest else int(short * side / shortest) for side in image.size]
    scales = [before / after for before, after in zip(image.size, resized, strict=True)]
    starts = [round((after - size) / 2) * scale for after, scale in zip(resized, scales, strict=True)]
    ends = [start + size * scale for start, scale in zip(starts, scales, strict=True)]
    return image.resize((size, size), Resampling.BILINEAR, (*starts, *map(min, ends, image.size)))
