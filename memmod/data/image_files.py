"""One image file: which kinds are served, how they become RGB, and what is wrong with the others."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from memmod.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = frozenset(".avif .bmp .gif .jfif .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split())
# Only these are tried on a file, whatever its suffix: some of Pillow's other readers run programs.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Pillow's modes of 8 bits a channel or fewer, which it converts to RGB by their own scale.
_EIGHT_BITS = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"))
_SIXTEEN_BITS = frozenset(("I;16", "I;16B", "I;16L", "I;16N"))
# In these formats Pillow's 32-bit mode holds 16-bit values.
_SIXTEEN_BITS_AS_INT = frozenset(("PNG", "PPM"))
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 258, 262, 339
_TIFF_UNSIGNED = 1


def read_rgb(path: str) -> Image:
    """The first frame of an image file as 8-bit RGB.

    16-bit images are scaled to 8 bits. Transparency is dropped, and a camera's orientation flag ignored, as
    torchvision's ImageFolder does.

    Raises:
        DataError: the file is missing, empty, damaged or larger than Pillow's limit, or its pixels have no scale.
    """
    with _opened(path) as file:
        white = _white(file, path)
        if white is None:
            return file.convert("RGB")
        values = np.asarray(file).astype(np.uint32)
        grey = ((values * 255 + white // 2) // white).astype(np.uint8)
        # Pillow inverts white-is-zero images of 8 bits, but not of 16
        if file.format == "TIFF" and file.tag_v2.get(_TIFF_PHOTOMETRIC) == 0:
            grey = 255 - grey
        return _pillow().fromarray(grey).convert("RGB")


def check_header(path: str) -> int:
    """The number of pixels that a file's header says, without decoding them.

    Raises:
        DataError: as `read_rgb`, but for damage behind the header.
    """
    with _opened(path) as file:
        _white(file, path)
        return file.width * file.height


def check_pixels(path: str) -> None:
    """Decode a file and throw the pixels away. Raises DataError as `read_rgb`."""
    with _opened(path) as file:
        _white(file, path)
        # a JPEG is read through all the same, but transformed at an eighth of its size
        file.draft(None, (1, 1))
        file.load()


def shown(path: str | os.PathLike[str]) -> str:
    """A path for messages: as it is, or with escapes where its bytes are not UTF-8."""
    text = os.fspath(path)
    return text if is_text(text) else ascii(text)


def is_text(text: str) -> bool:
    """Whether a name can be written as UTF-8: names of other bytes hold surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _opened(path: str) -> Iterator[Image]:
    image = _pillow()
    try:
        if not os.path.getsize(path):
            raise DataError(f"the image {shown(path)} is empty: replace it or take it away")
        with image.open(path, formats=_formats()) as file:
            limit = image.MAX_IMAGE_PIXELS
            if limit is not None and file.width * file.height > limit:
                raise _too_large(path, f"{file.width} × {file.height} pixels", limit)
            yield file
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(
            f"there is no image {shown(path)} (or it links to nothing): replace it or take it away"
        ) from None
    except image.UnidentifiedImageError as error:
        raise DataError(
            f"the image {shown(path)} is damaged, or not of a kind that is served ({', '.join(_formats())}): "
            "replace it or take it away"
        ) from error
    except (image.DecompressionBombError, image.DecompressionBombWarning) as error:
        pixels = re.search(r"\d+", str(error))
        size = f"{int(pixels[0]):,} pixels" if pixels else "too many pixels"
        raise _too_large(path, size, image.MAX_IMAGE_PIXELS) from None
    # whatever a reader raises on damaged bytes: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        what = "cannot be read" if getattr(error, "errno", None) else "is damaged"
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"the image {shown(path)} {what} ({reason}): replace it or take it away") from error


def _too_large(path: str, size: str, limit: int) -> DataError:
    return DataError(
        f"the image {shown(path)} has {size}, more than the {limit:,} that PIL.Image.MAX_IMAGE_PIXELS allows: make it "
        "smaller or take it away"
    )


def _white(file: Image, path: str) -> int | None:
    """The value of white in an image of more than 8 bits a channel; None where Pillow scales by itself.

    Raises:
        DataError: its pixels have no scale, or Pillow cannot make RGB of them.
    """
    tags = getattr(file, "tag_v2", {})
    unsigned = all(kind == _TIFF_UNSIGNED for kind in tags.get(_TIFF_SAMPLE_FORMAT, (_TIFF_UNSIGNED,)))
    if file.mode in _EIGHT_BITS and unsigned:
        return None
    if file.mode in _SIXTEEN_BITS or (file.mode == "I" and file.format in _SIXTEEN_BITS_AS_INT):
        return 2 ** tags.get(_TIFF_BITS, (16,))[0] - 1
    kind = f"{file.format} with {'signed ' * (not unsigned and file.mode in _EIGHT_BITS)}pixels of mode {file.mode!r}"
    raise DataError(
        f"the image {shown(path)} is a {kind}, whose black and white are not known: save it as grey of 8 or 16 "
        "bits, or as RGB"
    )


@functools.cache
def _formats() -> tuple[str, ...]:
    image = _pillow()
    image.init()
    return tuple(name for name in _FORMATS if name in image.OPEN)


def _pillow():
    from PIL import Image

    return Image
