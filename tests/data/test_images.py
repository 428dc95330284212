"""Every picture becomes upright RGB, or a sentence."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from excitor_mm.data.images import BadImage, load_image
from tests.conftest import jpeg

PHOTO = Path(__file__).parents[2] / "data" / "photos" / "coffee.jpg"


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr"])
def test_white_is_white_in_every_mode(mode: str) -> None:
    kind = {"CMYK": "TIFF", "I": "TIFF", "F": "TIFF", "YCbCr": "JPEG"}.get(mode, "PNG")
    white = {"I;16": 65535, "I": 65535, "F": 255.0, "LA": (255, 255), "RGBA": (255,) * 4}.get(mode)
    if mode in ("CMYK", "YCbCr", "P", "1"):
        image = Image.new("RGB", (4, 4), "white").convert(mode)
    else:
        image = Image.new(mode, (4, 4), white if white is not None else "white")
    loaded = load_image(encoded(image, kind))
    assert loaded.mode == "RGB"
    assert min(loaded.getpixel((1, 1))) >= 254


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    middle = Image.new("I;16", (2, 2), 32768)
    assert 120 <= load_image(encoded(middle)).getpixel((0, 0))[0] <= 135


def test_transparency_is_laid_on_white() -> None:
    assert load_image(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 0)))).getpixel((0, 0)) == (255, 255, 255)


def test_exif_orientation_is_honoured() -> None:
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    assert load_image(encoded(image, "JPEG", exif=exif)).size == (10, 20)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    loaded = load_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert loaded.getpixel((0, 0)) == (255, 0, 0)


def huge_png(side: int) -> bytes:
    """A PNG that claims side x side pixels in a few hundred bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image"),
        (b"<svg/>", "not an image"),
        (b"plain text", "not an image"),
        (jpeg(size=(200, 200))[:-400], "damaged"),
        (huge_png(20_000), "too large"),
        (huge_png(200_000), "too large"),
    ],
)
def test_bad_images(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage) as caught:
        load_image(data)
    assert caught.value.reason == reason


def test_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="cannot be read"):
        load_image(tmp_path / "none.jpg")


def test_a_draft_has_enough_pixels_and_looks_the_same() -> None:
    photo = Image.open(PHOTO).convert("RGB").resize((900, 1200))
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    data = encoded(photo, "JPEG", quality=95, exif=turned)
    whole = load_image(data)
    for enough, size in ((225, (300, 225)), (226, (600, 450)), (451, (1200, 900)), (5000, (1200, 900))):
        draft = load_image(data, enough=enough)
        assert draft.size == size
        pair = [np.asarray(image.resize((224, 168)), dtype=float) for image in (whole, draft)]
        assert np.abs(pair[0] - pair[1]).mean() < 2.0  # of 255
    assert load_image(encoded(photo), enough=100).size == photo.size
