"""Images that clients send: data URLs and, where it is allowed, addresses, up to a size."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from excitor_mm.errors import DataError


@dataclass(frozen=True)
class Limits:
    """What a client may send."""

    max_bytes: int = 20 * 2**20
    """Largest body of a request, and largest file behind an address."""
    allow_urls: bool = False
    """Fetch http(s) addresses, which lets clients make this machine read whatever it can reach."""


def read_image_url(url: str, limits: Limits) -> bytes:
    """The encoded image behind an `image_url`.

    Raises:
        DataError: not a data URL with base64, too large, or an address where none is allowed or readable.
    """
    if match := re.match(r"data:image/[\w.+-]+;base64,", url):
        try:
            return base64.b64decode(url[match.end() :], validate=True)
        except binascii.Error as error:
            raise DataError(f"The data URL is not valid base64 ({error}): encode the file's bytes again.") from error
    shown = url[:60]
    if not url.startswith(("http://", "https://")):
        raise DataError(f"The image is {shown!r}: give a data URL, data:image/jpeg;base64,...")
    if not limits.allow_urls:
        raise DataError(f"The image is at {shown!r}, and this server fetches no addresses: send a data URL.")
    return _fetch(url, limits.max_bytes)


def _fetch(url: str, max_bytes: int) -> bytes:
    import httpx

    content = bytearray()
    try:
        with httpx.stream("GET", url, timeout=10) as answer:
            answer.raise_for_status()
            for part in answer.iter_bytes():
                content += part
                if len(content) > max_bytes:
                    raise DataError(f"{url[:60]!r} holds more than {max_bytes} bytes: give a smaller image.")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise DataError(f"{url[:60]!r} cannot be fetched ({error}): check the address.") from error
    return bytes(content)
