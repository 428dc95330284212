"""Small files in and out: JSON read with a sentence for every damage; files and folders written whole or not."""

from __future__ import annotations

import contextlib
import ctypes
import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from excitor_mm.errors import DataError

LOCK = ".lock"


def cache_root() -> Path:
    """$EXCITOR_MM_CACHE, else excitor-mm in the XDG cache folder."""
    root = os.environ.get("EXCITOR_MM_CACHE")
    if root:
        return Path(root).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "excitor-mm"


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


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a flat folder to a temporary sibling, flush and rename: nobody ever sees half of it.

    Raises:
        DataError: no space, or no permission; an older folder stays as it was.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            fresh.chmod(0o755)
            for name, content in files.items():
                with (fresh / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            _flush(fresh)
            _replace(fresh, folder)
            _flush(folder.parent)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{folder} cannot be written ({reason}): free space or choose another place.") from error


def _flush(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(fresh: Path, folder: Path) -> None:
    """Move `fresh` to `folder`; what was there is left at `fresh`, or gone."""
    if not folder.exists():
        fresh.rename(folder)
    elif not _exchange(fresh, folder):  # for a moment there is no folder; `recover_folder` knows
        old = _old(folder)
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one move; False where the system cannot (it is Linux's renameat2)."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None)
    here = -100  # AT_FDCWD
    return swap is not None and swap(here, os.fsencode(one), here, os.fsencode(other), 2) == 0


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}-old")


def recover_folder(folder: Path) -> None:
    """Put right what a `write_folder` that was killed left behind."""
    if not folder.exists() and _old(folder).exists():
        _old(folder).rename(folder)
    for left in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def hold(path: Path, name: str = LOCK) -> Iterator[None]:
    """Own a folder while the context lasts; it is made if need be. A process that dies lets go.

    Raises:
        DataError: another process owns it, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / name)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DataError(
            f"{path} is in use: another process is writing into it; wait for it, or choose another place."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}): choose another place.") from error
    try:
        yield
    finally:
        (path / name).unlink(missing_ok=True)  # filelock takes no lock on a file without a name
        lock.release()
