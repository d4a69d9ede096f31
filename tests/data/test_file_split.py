"""Splits of files: the crop, and what `check` finds before the first batch."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as transforms

from memmod.data import FileSplit, file_split
from memmod.data.file_split import RESIZE_RATIO, THIN, centre_crop
from memmod.errors import DataError


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


def resized_then_cropped(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(transforms.center_crop(transforms.resize(image, round(size * RESIZE_RATIO)), [size, size]))


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 64), (200, 133), (31, 31 * THIN)])
@pytest.mark.parametrize("size", [8, 33, 224])
def test_ordinary_images_are_resized_then_cropped(shape: tuple[int, int], size: int) -> None:
    image = picture(*shape)
    assert np.array_equal(np.asarray(centre_crop(image, size)), resized_then_cropped(image, size))


@pytest.mark.parametrize("shape", [(2, 40), (40, 2), (3, 50), (5, 93), (300, 7), (1, 17)])
@pytest.mark.parametrize("size", [8, 32, 65])
def test_thin_images_are_cropped_first_to_the_same_pixels(shape: tuple[int, int], size: int) -> None:
    image = picture(*shape, seed=size)
    found, expected = np.asarray(centre_crop(image, size)).astype(int), resized_then_cropped(image, size).astype(int)
    # Pillow takes the corners of a box in single precision
    assert np.abs(found - expected).max() <= 2
    assert found.std() > 1


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["1, 6000", "6000, 1"])
def test_thin_images_take_no_gigabytes(shape: str) -> None:
    program = (
        "import resource, torch; from PIL import Image; from memmod.data.file_split import centre_crop; "
        "centre_crop(Image.new('RGB', (8, 8)), 8); limit = int(open('/proc/self/statm').read().split()[0]) * 4096; "
        f"resource.setrlimit(resource.RLIMIT_AS, (limit + (64 << 20), -1)); "
        f"image = Image.new('RGB', ({shape}), 'red'); "
        "assert centre_crop(image, 224).getpixel((100, 100)) == (255, 0, 0)"
    )
    assert resource.getpagesize() == 4096
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def files(folder: Path, count: int) -> FileSplit:
    paths = [folder / f"{number}.png" for number in range(count)]
    for path in paths:
        picture(40, 30).save(path)
    return FileSplit([str(path) for path in paths], torch.zeros(count), 16)


def test_check_of_good_files_reports_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    files(tmp_path, 5).check(lambda done, images: seen.append((done, images)))
    assert seen == [(5, 5), (5, 5)]


def test_check_names_every_file_that_is_wrong(tmp_path: Path) -> None:
    split = files(tmp_path, 5)
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "3.png").unlink()
    with pytest.raises(DataError, match=r"1\.png is empty.*1 more cannot be read either: .*3\.png") as caught:
        split.check()
    assert "0.png" not in str(caught.value)


def test_check_decodes_what_is_few_and_opens_what_is_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = files(tmp_path, 3)
    path = tmp_path / "2.png"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"2\.png is damaged"):
        split.check()
    monkeypatch.setattr(file_split, "CHECKED_PIXELS", 3 * 40 * 30 - 1)
    split.check()
    with pytest.raises(DataError, match=r"2\.png is damaged"):
        split.batch(torch.arange(3))


def test_black_and_white_are_what_such_pixels_become(tmp_path: Path) -> None:
    for name in ("black", "white"):
        Image.new("RGB", (16, 16), name).save(tmp_path / f"{name}.png")
    split = FileSplit([str(tmp_path / "black.png"), str(tmp_path / "white.png")], torch.zeros(2), 16)
    black, white = split.batch(torch.tensor([0, 1]))
    torch.testing.assert_close(black, split.black.expand(3, 16, 16))
    torch.testing.assert_close(white, split.white.expand(3, 16, 16))
