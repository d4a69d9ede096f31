"""From a request to an image as the network takes it and the classes to forget; what is wrong with it, in words."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from examples.serving.worker import Description

IMAGES = {"image/png": "PNG", "image/jpeg": "JPEG"}
# Pillow's modes of 8 bits a channel, which it converts by their own scale.
EIGHT_BITS = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
MODES = {1: "L", 3: "RGB"}


class BadRequest(Exception):
    """What is wrong with a request, and the status that says so."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def parse(
    body: bytes, content_type: str, forget: Sequence[str], model: Description, resize: bool
) -> tuple[np.ndarray, set[int]]:
    """(image fp32 ``[C, H, W]``, classes) of a request.

    Args:
        content_type: image/png, image/jpeg, or application/json: {"image": nested lists [C, H, W], "forget": [...]}.
        forget: class names or numbers in the address, for images.
        resize: images of another size are resized to the network's.

    Raises:
        BadRequest
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in IMAGES:
        return decode(body, IMAGES[kind], model, resize), classes(forget, model)
    if kind != "application/json":
        raise BadRequest(415, f"the content type is {kind!r}: send {', '.join((*IMAGES, 'application/json'))}")
    if forget:
        raise BadRequest(400, 'the body is JSON: put the classes into its "forget", not into the address')
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(400, f"the body is not JSON ({error})") from error
    if not isinstance(fields, dict) or "image" not in fields or fields.keys() - {"image", "forget"}:
        raise BadRequest(
            400, 'the body must be an object with "image" and, if any classes are to be forgotten, "forget"'
        )
    asked = fields.get("forget", [])
    return array(fields["image"], model), classes(asked if isinstance(asked, list) else [asked], model)


def decode(body: bytes, form: str, model: Description, resize: bool) -> np.ndarray:
    """The pixels of an image file, scaled as the network was trained with. Raises BadRequest."""
    channels, height, width = model.input_shape
    if channels not in MODES:
        raise BadRequest(415, f"the network takes images of {channels} channels: send arrays, as application/json")
    try:
        with Image.open(io.BytesIO(body), formats=(form,)) as file:
            if file.size != (width, height) and not resize:
                raise BadRequest(
                    422, f"the image has {file.width} × {file.height} pixels, the network takes {width} × {height}"
                )
            if file.mode not in EIGHT_BITS:
                raise BadRequest(422, f"the image's pixels are of mode {file.mode!r}: send 8 bits a channel")
            image = file.convert(MODES[channels]).resize((width, height))
    except BadRequest:
        raise
    except Image.DecompressionBombError as error:
        raise BadRequest(413, f"the image is too large: {error}") from error
    # Whatever Pillow raises on damaged bytes: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        raise BadRequest(422, f"the body is no {form} image, or a damaged one ({error})") from error
    pixels = np.asarray(image, dtype=np.float32).reshape(height, width, channels).transpose(2, 0, 1) / 255
    black, white = (np.asarray(values, dtype=np.float32).reshape(-1, 1, 1) for values in (model.black, model.white))
    return black + pixels * (white - black)


def array(values: Any, model: Description) -> np.ndarray:
    """Nested lists as an image, whose values are what the network takes. Raises BadRequest."""
    shape = "×".join(map(str, model.input_shape))
    try:
        found = np.asarray(values)
    except ValueError:
        raise BadRequest(422, f"the image's lists are of different lengths; the network takes {shape}") from None
    if found.dtype.kind not in "fiu":
        raise BadRequest(422, f"the image must be nested lists of numbers; the network takes {shape}")
    if found.shape != model.input_shape:
        raise BadRequest(422, f"the image has the shape {'×'.join(map(str, found.shape))}, the network takes {shape}")
    with np.errstate(over="ignore"):
        image = found.astype(np.float32)
    if not np.isfinite(image).all():
        raise BadRequest(422, "the image holds values that are not finite")
    return image


def classes(asked: Sequence[Any], model: Description) -> set[int]:
    """Class numbers of names (first) and numbers; -1 is nothing. Raises BadRequest."""
    return {_class(entry, model) for entry in asked} - {-1}


def _class(entry: Any, model: Description) -> int:
    names = model.class_names or ()
    if isinstance(entry, str) and entry in names:
        return names.index(entry)
    number = entry
    if isinstance(entry, str):
        try:
            number = int(entry)
        except ValueError:
            known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise BadRequest(422, f"unknown class {entry!r}; known are {known or 'numbers alone'}") from None
    if type(number) is not int:
        raise BadRequest(422, f"{json.dumps(entry)} in forget is neither the name nor the number of a class")
    if not -1 <= number < model.num_classes:
        raise BadRequest(422, f"unknown class {number}; numbers lie in 0 to {model.num_classes - 1}")
    return number
