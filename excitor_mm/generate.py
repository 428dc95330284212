"""Captions for picture files."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from excitor_mm.config import DecodingConfig
from excitor_mm.data.images import BadImage, load_image
from excitor_mm.errors import DataError
from excitor_mm.model import ExcitorModel

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class Captioned(NamedTuple):
    """One line of output: a caption, or why there is none."""

    path: str
    caption: str | None
    error: str | None = None


def find_images(names: Sequence[str], stdin: IO[str]) -> list[str]:
    """Paths of pictures from files, folders (searched through), globs, and `-` (paths on stdin).

    Raises:
        DataError: a name that matches nothing.
    """
    found: list[str] = []
    for name in names:
        if name == "-":
            found += [line.rstrip("\r\n") for line in stdin if line.strip()]
        elif Path(name).is_dir():
            files = sorted(path for path in Path(name).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
            found += map(str, files)
        elif Path(name).exists() or not glob.has_magic(name):
            found.append(name)
        else:
            found += sorted(glob.glob(name, recursive=True))
    if not found:
        raise DataError(f"No picture found in {' '.join(names)}: give files, folders or globs.")
    return found


def caption_files(
    model: ExcitorModel,
    paths: Sequence[str],
    *,
    batch_size: int = 8,
    prompt: str | None = None,
    decoding: DecodingConfig | None = None,
) -> Iterator[Captioned]:
    """Caption pictures in batches, in order; one that cannot be read does not stop the others."""
    for start in range(0, len(paths), batch_size):
        chunk = paths[start : start + batch_size]
        results: dict[int, Captioned] = {}
        images = []
        for index, path in enumerate(chunk):
            try:
                images.append((index, load_image(path)))
            except BadImage as error:
                results[index] = Captioned(path, None, str(error))
        if images:
            captions = model.caption([image for _, image in images], prompt=prompt, decoding=decoding)
            for (index, _), caption in zip(images, captions, strict=True):
                results[index] = Captioned(chunk[index], caption)
        yield from (results[index] for index in range(len(chunk)))
