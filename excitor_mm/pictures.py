"""Pictures by name: files, folders, globs, tar shards and lists on stdin, and new files as they arrive."""

from __future__ import annotations

import functools
import glob
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from excitor_mm.data.shards import BadRecord, expected_samples, list_shards, read_shard
from excitor_mm.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")


class Picture(NamedTuple):
    """One picture of a collection."""

    path: str
    """Its name in the output: the file, or `shard.tar/key`."""
    source: str | bytes
    """The file, or what the shard holds."""


@dataclass(frozen=True)
class Collection:
    """What some names stand for."""

    files: tuple[str, ...]
    """Picture files, without `./` and its kin, in the order of the names; folders are searched through."""
    shards: tuple[str, ...] = ()
    """Tar files with pictures."""
    count: int | None = None
    """Number of pictures; None where shards have no index."""

    def pictures(self, on_bad: Callable[[str, str], None]) -> Iterator[Picture]:
        """Every picture; `on_bad(path, sentence)` hears of what a shard holds that is none."""
        for path in self.files:
            yield Picture(path, path)
        for shard in self.shards:
            for sample in read_shard(shard, functools.partial(_report, shard, on_bad)):
                if sample.image is not None:
                    yield Picture(f"{shard}/{sample.key}", sample.image)


def find_pictures(names: Sequence[str], stdin: IO[str]) -> Collection:
    """What files, folders, globs, shards (.tar, as brace lists and URLs too) and `-` (paths on stdin) stand for.

    A folder stands for its pictures, or for its shards where it holds no picture. What is named twice counts once.

    Raises:
        DataError: no picture at all.
    """
    files: list[str] = []
    shards: list[str] = []
    counts: list[int | None] = []
    for name in names:
        if name == "-":
            files += [os.path.normpath(line.rstrip("\r\n")) for line in stdin if line.strip()]
        elif name.endswith(".tar"):
            shards += list_shards(sorted(glob.glob(name)) or name)
            counts.append(None)
        elif found := _files(name):
            files += found
        elif any(Path(name).glob("*.tar")):
            shards += list_shards(name)
            counts.append(expected_samples(name))
    if not files and not shards:
        raise DataError(f"No picture found in {' '.join(names)}: give files, folders, globs or shards.")
    once = tuple(dict.fromkeys(files))
    count = None if None in counts else len(once) + sum(filter(None, counts))
    return Collection(once, tuple(dict.fromkeys(shards)), count)


def _files(name: str) -> list[str]:
    """Pictures of a folder, files of a glob, or the name itself."""
    if Path(name).is_dir():
        return sorted(str(path) for path in Path(name).rglob("*") if path.suffix.lower() in SUFFIXES)
    if glob.has_magic(name) and not Path(name).exists():
        return sorted(os.path.normpath(path) for path in glob.glob(name, recursive=True) if not os.path.isdir(path))
    return [os.path.normpath(name)]


def _report(shard: str, on_bad: Callable[[str, str], None], record: BadRecord) -> None:
    path = f"{shard}/{record.key}"
    on_bad(path, f"{path} cannot be used ({record.reason}): see `excitor-mm shards check`.")


def watch_pictures(names: Sequence[str], seconds: float) -> Iterator[Collection]:
    """Picture files in folders and globs as they arrive, without end.

    A file is taken when it is the same at two looks `seconds` apart, so that none is read while it is still
    being written; it is taken again when it changes. A look without a new file gives an empty collection.
    """
    before: dict[str, tuple[int, int]] = {}
    taken: dict[str, tuple[int, int]] = {}
    while True:
        now = {path: state for name in names for path in _files(name) if (state := _state(path))}
        ready = [path for path, state in now.items() if before.get(path) == state != taken.get(path)]
        taken.update((path, now[path]) for path in ready)
        before = now
        yield Collection(tuple(ready), (), len(ready))
        time.sleep(seconds)


def _state(path: str) -> tuple[int, int] | None:
    """Size and time of change; None for what is no file (any more)."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if os.path.isfile(path) else None
