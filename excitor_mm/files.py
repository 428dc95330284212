"""Small files in and out: JSON read with a sentence for every damage, and written whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

from excitor_mm.errors import DataError


def read_json(path: Path) -> Any:
    """JSON, plain or gzipped, with or without a byte order mark.

    Raises:
        DataError: missing or not JSON.
    """
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not readable JSON ({error}): write or download it again.") from error


def read_rows(path: Path) -> list[Any]:
    """A JSON array or JSON lines, whatever the file is called.

    Raises:
        DataError: neither, or an empty file.
    """
    text = _read(path)
    if not text.strip():
        raise DataError(f"{path} is empty: expected a JSON array or JSON lines.")
    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is neither a JSON array nor JSON lines ({error}): it may be cut off; write it again."
        ) from error
    if not rows:
        raise DataError(f"{path} holds no row: expected one for each image or question.")
    return list(rows)


def _read(path: Path) -> str:
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            return file.read().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}): save it as UTF-8.") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}): check the access, or download it again.") from error


def write_json(path: Path, value: Any) -> None:
    """Indented JSON; see `write_bytes`."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8", "replace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write to a temporary sibling, then rename: nobody ever sees half a file. Folders are made.

    Raises:
        DataError: no space, or no permission; an older file stays as it was.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with fresh.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path} cannot be written ({reason}): free space or choose another place.") from error
