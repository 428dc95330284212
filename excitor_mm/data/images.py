"""Encoded images to RGB, the same way in packing, training and captioning."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from excitor_mm.data.samples import BadSample

MAX_PIXELS = 100_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM")
"""Of all that Pillow opens; to some others it answers by starting a program."""


class BadImage(BadSample):
    """An image that cannot be used; `reason` is short enough to be counted."""


def load_image(source: bytes | str | Path, max_pixels: int = MAX_PIXELS, enough: int | None = None) -> Image.Image:
    """Decode an image: upright by its EXIF orientation, RGB, the first frame of an animation.

    Transparency is laid on white; 16-bit and float pictures are scaled to 8 bits.

    Args:
        source: the encoded bytes, or a path.
        max_pixels: larger images are refused before they are decoded.
        enough: a shorter side that suffices. A JPEG is then decoded at the half, quarter or eighth that still has
            it: several times faster on large photos, at pixels that differ slightly from resized ones.

    Raises:
        BadImage: missing, too large, truncated, or not an image.
    """
    name = "the image" if isinstance(source, bytes) else str(source)
    try:
        data = io.BytesIO(source if isinstance(source, bytes) else Path(source).read_bytes())
    except OSError as error:
        raise BadImage("unreadable", f"{name} cannot be read: {error.strerror}.") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            Image.init()  # or Pillow knows only half of them by name
            image = Image.open(data, formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise BadImage(
                    "too large",
                    f"{name} has {image.width} x {image.height} pixels, at most {max_pixels} are read: shrink it.",
                )
            if enough is not None:
                shorter = min(image.size)
                image.draft(None, (enough * image.width // shorter, enough * image.height // shorter))
            return _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        kind = "not an image"
        raise BadImage(kind, f"{name} is not an image that Pillow reads: give JPEG, PNG, WebP or GIF.") from error
    except Image.DecompressionBombError as error:
        raise BadImage("too large", f"{name} is too large to decode ({error}): shrink it.") from error
    except BadImage:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise BadImage("damaged", f"{name} is damaged or cut off ({error}): replace the file.") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        extrema: Any = image.getextrema()  # one band, so one pair
        highest = float(extrema[1])
        top = 65535.0 if image.mode != "F" and highest > 255 else max(highest, 255.0)
        image = image.convert("F").point(lambda value: value * (255 / top)).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
