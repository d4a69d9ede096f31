"""Image files: each kind is read with its own scale, or refused by name."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from memmod.data.image_files import check_header, check_pixels, read_rgb
from memmod.errors import DataError

RAMP = np.tile(np.arange(256, dtype=np.uint8), (8, 1))


def write_tiff(path: Path, pixels: np.ndarray, bits: int, photometric: int = 1, sample_format: int = 1) -> None:
    """A grey TIFF of one strip, little-endian: what Pillow reads, but does not write."""
    data = pixels.tobytes()
    tags = [(256, 3, pixels.shape[1]), (257, 3, pixels.shape[0]), (258, 3, bits), (259, 3, 1), (262, 3, photometric)]
    tags += [(273, 4, 8), (277, 3, 1), (278, 3, pixels.shape[0]), (279, 4, len(data)), (339, 3, sample_format)]
    if bits == 12:
        tags[0] = (256, 3, pixels.shape[1] * 2 // 3)
    entries = b"".join(struct.pack("<HHIHxx" if kind == 3 else "<HHII", tag, kind, 1, v) for tag, kind, v in tags)
    header = b"II*\0" + struct.pack("<I", 8 + len(data))
    path.write_bytes(header + data + struct.pack("<H", len(tags)) + entries + bytes(4))


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def red(path: Path) -> np.ndarray:
    image = read_rgb(str(path))
    assert image.mode == "RGB"
    check_pixels(str(path))
    assert check_header(str(path)) == image.width * image.height
    return np.asarray(image)[..., 0]


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_16_bit_grey_is_scaled(tmp_path: Path, name: str) -> None:
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / name)
    assert np.array_equal(red(tmp_path / name), RAMP)


def test_16_bit_grey_of_either_byte_order(tmp_path: Path) -> None:
    values = RAMP.astype(np.uint16) * 257
    for mode, order in (("I;16", "<u2"), ("I;16B", ">u2")):
        image = Image.frombytes(mode, RAMP.shape[::-1], values.astype(order).tobytes())
        image.save(tmp_path / "x.tif")
        assert Image.open(tmp_path / "x.tif").mode == mode
        assert np.array_equal(red(tmp_path / "x.tif"), RAMP)


def test_16_bit_grey_is_rounded_not_cut(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 65406, 65407, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert red(tmp_path / "x.png").tolist() == [[0, 0, 1, 254, 255, 255]]


def test_plain_pgm_of_any_maximum(tmp_path: Path) -> None:
    (tmp_path / "x.pgm").write_text("P2\n3 1\n1000\n0 500 1000\n")
    assert red(tmp_path / "x.pgm").tolist() == [[0, 128, 255]]


def test_12_bit_tiff_has_its_own_white(tmp_path: Path) -> None:
    # two pixels of 12 bits in three bytes: 0 and 4095
    write_tiff(tmp_path / "x.tif", np.array([[0x00, 0x0F, 0xFF]], dtype=np.uint8), bits=12)
    assert red(tmp_path / "x.tif").tolist() == [[0, 255]]


@pytest.mark.parametrize("bits", [8, 16])
def test_white_is_zero_tiff_is_inverted(tmp_path: Path, bits: int) -> None:
    values = RAMP if bits == 8 else RAMP.astype("<u2") * 257
    write_tiff(tmp_path / "x.tif", values, bits, photometric=0)
    assert np.array_equal(red(tmp_path / "x.tif"), 255 - RAMP)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_8_bit_kinds_are_pillows(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)).convert(mode)
    path = tmp_path / ("x.png" if mode in ("1", "L", "LA", "P", "RGB", "RGBA") else "x.tif")
    picture.save(path)
    assert Image.open(path).mode == mode
    assert np.array_equal(np.asarray(read_rgb(str(path))), np.asarray(picture.convert("RGB")))


def test_16_bit_colour_keeps_its_scale(tmp_path: Path) -> None:
    (tmp_path / "x.ppm").write_bytes(b"P6 2 1 65535\n" + struct.pack(">6H", 65535, 0, 32896, 0, 65535, 257))
    assert np.asarray(read_rgb(str(tmp_path / "x.ppm"))).tolist() == [[[255, 0, 128], [0, 255, 1]]]


def test_the_first_frame_of_several(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((200, 10, 10), (10, 10, 200))]
    for name in ("x.gif", "x.png", "x.webp", "x.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert abs(int(red(tmp_path / name)[0, 0]) - 200) < 10, name


def refused(path: Path, text: str) -> None:
    for function in (read_rgb, check_header, check_pixels):
        with pytest.raises(DataError, match=text) as caught:
            function(str(path))
        assert path.name in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "sample_format", "bits", "mode"),
    [("<f4", 3, 32, "F"), ("<i4", 2, 32, "I"), ("<u4", 1, 32, "I"), ("<i2", 2, 16, "I"), ("<i1", 2, 8, "L")],
)
def test_pixels_without_a_scale_are_refused(
    tmp_path: Path, kind: str, sample_format: int, bits: int, mode: str
) -> None:
    write_tiff(tmp_path / "x.tif", np.ones((4, 4), kind), bits, sample_format=sample_format)
    refused(tmp_path / "x.tif", f"TIFF with .*mode '{mode}', whose black and white are not known: save it as grey")


def test_lab_is_refused(tmp_path: Path) -> None:
    Image.new("LAB", (4, 4)).save(tmp_path / "x.tif")
    refused(tmp_path / "x.tif", "mode 'LAB'")


def test_missing_and_empty_files_and_other_kinds(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "program.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "folder.png").mkdir()
    refused(tmp_path / "empty.png", "is empty: replace it")
    refused(tmp_path / "text.png", "damaged, or not of a kind that is served")
    refused(tmp_path / "program.png", "damaged, or not of a kind that is served")
    refused(tmp_path / "dangling.png", "links to nothing")
    refused(tmp_path / "folder.png", "cannot be read .*directory")


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.tif", "x.bmp"])
def test_pixels_cut_short_are_refused_when_decoded(tmp_path: Path, name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    path = tmp_path / name
    Image.fromarray(pixels).save(path)
    check_pixels(str(path))
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    for function in (read_rgb, check_pixels):
        with pytest.raises(DataError, match=rf"{name} is damaged"):
            function(str(path))


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_images_above_pillows_limit(tmp_path: Path, side: int) -> None:
    """Between one and two limits Pillow warns, above it raises: both are refused, also where warnings are errors."""
    (tmp_path / "x.png").write_bytes(png(side, side, zlib.compress(bytes(side // 8 + 1))))
    for action in ("ignore", "error"):
        with warnings.catch_warnings():
            warnings.simplefilter(action)
            refused(tmp_path / "x.png", rf"{side}|{side * side:,}")
            refused(tmp_path / "x.png", f"{Image.MAX_IMAGE_PIXELS:,} that PIL.Image.MAX_IMAGE_PIXELS allows: make it")


def test_the_limit_is_pillows_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (30, 30)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    with pytest.warns(Image.DecompressionBombWarning):
        refused(tmp_path / "x.png", "30 × 30 pixels, more than the 600")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    check_pixels(str(tmp_path / "x.png"))


def test_names_of_other_bytes_work_and_are_shown_escaped(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/odd\xe9.png")
    Image.new("RGB", (4, 4), (9, 9, 9)).save(path)
    assert np.asarray(read_rgb(path)).max() == 9
    Path(path).write_bytes(b"")
    with pytest.raises(DataError) as caught:
        read_rgb(path)
    assert "odd\\udce9.png" in str(caught.value)
    str(caught.value).encode()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["x.bmp", "x.gif", "x.jpg", "x.pgm", "x.png", "x.tif", "x.webp"])
def test_changed_bytes_give_pixels_or_a_worded_error(tmp_path: Path, name: str) -> None:
    path, random = tmp_path / name, np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (12, 10)).astype(np.uint8)).save(path)
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    refusals = 0
    for _ in range(150):
        changed = content.copy()
        places = random.integers(0, min(len(content), 120), random.integers(1, 5))
        changed[places] = random.integers(0, 256, len(places))
        path.write_bytes(changed[: random.integers(1, len(content) + 1)].tobytes())
        for function in (check_header, check_pixels, read_rgb):
            try:
                function(str(path))
            except DataError as error:
                refusals += 1
                assert name in str(error)
    assert refusals > 50
