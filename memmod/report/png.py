"""A minimal PNG writer: one colour, opacity from a matrix. Pixels that are 0 let the page's background through."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np


def opacity_png(opacity: np.ndarray, colour: tuple[int, int, int]) -> bytes:
    """PNG `[H, W]` in one colour whose alpha is `opacity` `[H, W]` in [0, 1]. Raises ValueError for another shape."""
    if opacity.ndim != 2 or 0 in opacity.shape:
        raise ValueError(f"a picture needs a matrix with rows and columns, got shape {tuple(opacity.shape)}")
    height, width = opacity.shape
    alpha = np.rint(np.clip(opacity, 0, 1) * 255).astype(np.uint8)
    # palette entry i is the colour at alpha i; every scan line starts with filter type 0
    lines = np.hstack([np.zeros((height, 1), np.uint8), alpha]).tobytes()
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", bytes(colour) * 256),
            _chunk(b"tRNS", bytes(range(256))),
            _chunk(b"IDAT", zlib.compress(lines, 9)),
            _chunk(b"IEND", b""),
        ]
    )


def data_uri(png: bytes) -> str:
    """The picture as a `data:` address, to be used inside the page itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
