"""Shards from object stores: fetched whole into a local cache, checked, and read from there.

Reading straight from the network could not go on after a dropped connection without showing samples twice. A
connection that drops, stalls or ends early, a server error and a wrong checksum are tried again, each time after a
longer wait. The cache is a folder; readers on one machine share it, and what was used longest ago is deleted when it
grows over its limit.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from excitor_mm.console import log
from excitor_mm.data.index import file_sha256
from excitor_mm.errors import ConfigError, DataError
from excitor_mm.files import cache_root

URL_SCHEMES = ("http", "https", "s3", "gs")
ATTEMPTS = 6
FIRST_WAIT = 1.0  # seconds before the second attempt; doubled for each one after
STALL = 60.0  # seconds without a byte before a connection counts as broken
LIMIT = "EXCITOR_MM_SHARDS_GB"
CHECKSUM = "#sha256="
"""Between the address of a shard and its checksum, in what `list_shards` returns."""


def is_url(name: str) -> bool:
    """True for what is fetched."""
    return name.partition(":")[0] in URL_SCHEMES


def shard_name(url: str) -> str:
    """The file name of a shard, without query and checksum."""
    return posixpath.basename(url.partition("#")[0].partition("?")[0])


def open_remote(url: str) -> IO[bytes]:
    """A shard from the cache, fetched if it is not there.

    Args:
        url: with the checksum behind `CHECKSUM` where it is known.

    Raises:
        DataError: it does not exist, cannot be reached, or is never what its checksum says.
    """
    from filelock import FileLock

    address, _, wanted = url.partition(CHECKSUM)
    key = hashlib.sha256(url.encode()).hexdigest()[:24]
    folder = cache_root() / "shards"
    path = folder / f"{key}-{shard_name(address)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".lock-{key[:2]}"):  # readers of the same shard fetch it once
            if not path.exists():
                _fetch(address, path, wanted)
                _make_room(folder, path)
            file = path.open("rb")
            os.utime(path, ns=(time.time_ns(), time.time_ns()))  # the system's own stamp is milliseconds coarse
            return file
    except OSError as error:
        raise DataError(
            f"The shard cache {folder} cannot be written ({error.strerror}): free some space, lower {LIMIT}, or set "
            "EXCITOR_MM_CACHE."
        ) from error


def read_remote(url: str) -> bytes:
    """A small file, not cached.

    Raises:
        DataError: it does not exist or cannot be reached.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "file"
        _fetch(url, path, wanted="")
        return path.read_bytes()


def _fetch(address: str, path: Path, wanted: str) -> None:
    """Write a remote file to `path`, whole and checked."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".fetching-")
    os.close(handle)
    wait = FIRST_WAIT
    try:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _download(address, name)
                found = file_sha256(Path(name)) if wanted else ""
                if found == wanted:
                    os.replace(name, path)
                    return
                reason = f"its sha256 is {found}, the index says {wanted}"
            except (FileNotFoundError, PermissionError, ImportError) as error:
                raise DataError(f"{address} cannot be opened ({error}): check the address and the access.") from error
            except Exception as error:  # every protocol has its own
                if isinstance(error, OSError) and error.filename == name:
                    raise  # our own disk
                reason = f"{type(error).__name__} {error}".strip()
            if attempt < ATTEMPTS:
                log(f"{address}: {reason}; trying again in {wait:.0f} s")
                time.sleep(wait)
                wait *= 2
    finally:
        Path(name).unlink(missing_ok=True)
    raise DataError(f"{address} cannot be fetched, {ATTEMPTS} times ({reason}): check the address and the network.")


def _download(address: str, target: str) -> None:
    from fsspec.core import url_to_fs

    options: dict[str, Any] = {}
    if address.startswith("http"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALL, sock_read=STALL)
        options = {"client_kwargs": {"timeout": timeout}}
    filesystem, name = url_to_fs(address, **options)
    filesystem.get_file(name, target)


def _limit() -> float:
    """Bytes the cache may take: $EXCITOR_MM_SHARDS_GB, 50 unless set."""
    text = os.environ.get(LIMIT, "50")
    try:
        return float(text) * 1e9
    except ValueError as error:
        raise ConfigError(f"{LIMIT} is {text!r}, expected a number of gigabytes.") from error


def _make_room(folder: Path, newest: Path) -> None:
    """Delete what was used longest ago; a file that is being read stays readable."""
    found = []
    for path in folder.glob("*.tar"):
        try:
            found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        except FileNotFoundError:  # another reader makes room, too
            continue
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total > _limit() and path != newest:
            path.unlink(missing_ok=True)
            total -= size
