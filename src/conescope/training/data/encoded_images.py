"""Decode images that a file holds as bytes; a path or an address in the file is never opened."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from conescope.errors import DataError

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_MODES = ("L", "LA", "RGB", "RGBA")
_CONVERTED = {"1": "L", "P": "RGB"}  # black and white, and colours by their number in a palette
_MOST_PIXELS = 2**24
_MOST_BYTES = 2**35


def decoded(images: Sequence[Any], source: str) -> list[np.ndarray]:
    """Decode images of one size.

    Args:
        images: each the encoded bytes, or a mapping that has them under "bytes".
        source: the file, for messages.

    Returns:
        Arrays [height, width] of grey images, [height, width, channels] of others, uint8.

    Raises:
        DataError: if there are none, or an image has no bytes, is damaged, too large, not of 8
            bits a channel, or of another size than the first; the message names it.
    """
    if not images:
        raise DataError(f"{source} holds no images; write at least one row into it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes, which are checked for all limits alike
        return _all_decoded(images, source)


def _all_decoded(images: Sequence[Any], source: str) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    for place, image in enumerate(images, start=1):
        where = f"{source}: image {place}"
        array = _decode(image, where)
        if found and array.shape != found[0].shape:
            raise DataError(
                f"{where} has the shape {list(array.shape)}, and the first one "
                f"{list(found[0].shape)}; images must have one size"
            )
        if array.nbytes * len(images) > _MOST_BYTES:
            raise DataError(
                f"{source}: {len(images):,} images of shape {list(array.shape)} take more than "
                f"{_MOST_BYTES:,} bytes; make them smaller, or take fewer"
            )
        found.append(array)
    return found


def _decode(image: Any, where: str) -> np.ndarray:
    data = image.get("bytes") if isinstance(image, Mapping) else image
    if not isinstance(data, bytes):
        raise DataError(
            f"{where} is not there as encoded bytes; a path or an address in its place is never "
            f"opened: write the bytes of each image, such as those of a PNG, into the file"
        )
    try:
        opened = Image.open(io.BytesIO(data), formats=_FORMATS)
        if opened.width * opened.height > _MOST_PIXELS:
            raise DataError(f"{where} says {opened.size} pixels, more than is read; shrink it")
        opened.load()
        ImageOps.exif_transpose(opened, in_place=True)
    except (Image.DecompressionBombError, OSError, ValueError, SyntaxError, EOFError) as error:
        reason = str(error).splitlines()[0] if "object at" not in str(error) else "unknown kind"
        raise DataError(
            f"{where} cannot be decoded: {reason}; save it anew as PNG, or leave it out"
        ) from None
    if opened.mode in _CONVERTED:
        opened = opened.convert(_CONVERTED[opened.mode])
    if opened.mode not in _MODES:
        raise DataError(
            f"{where} is of the kind {opened.mode}, and images have 8 bits a channel, grey or RGB; "
            f"convert it"
        )
    return np.asarray(opened)
