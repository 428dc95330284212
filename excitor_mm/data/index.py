"""A folder of shards: writing one tar file, and index.json with counts and checksums."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from excitor_mm.config import from_dict
from excitor_mm.data.samples import Sample, sample_to_fields
from excitor_mm.errors import ConfigError, DataError
from excitor_mm.files import write_json

INDEX = "index.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ShardEntry:
    """One tar file."""

    name: str
    samples: int
    captions: int
    questions: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """What index.json holds."""

    name: str
    shards: list[ShardEntry]
    source: dict[str, str] = field(default_factory=dict)
    """Where the samples came from: annotation files, split."""
    format_version: int = FORMAT_VERSION

    @property
    def samples(self) -> int:
        """In all shards."""
        return sum(shard.samples for shard in self.shards)


def write_shard(path: Path, samples: Iterable[Sample]) -> ShardEntry:
    """Write a tar file whose bytes depend on the samples alone; it appears under its name when complete."""
    from webdataset import TarWriter

    count, captions, questions = 0, 0, 0
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    fresh = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            with TarWriter(file, encoder=False, mtime=0, user="", group="") as writer:
                for sample in samples:
                    writer.write({"__key__": sample.key, **sample_to_fields(sample)})
                    count += 1
                    captions += len(sample.captions)
                    questions += len(sample.questions)
            file.flush()
            os.fsync(file.fileno())
        fresh.chmod(0o644)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return ShardEntry(path.name, count, captions, questions, path.stat().st_size, file_sha256(path))


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_index(folder: Path, index: ShardIndex) -> None:
    """Write index.json, the last file of a packed folder."""
    write_json(folder / INDEX, dataclasses.asdict(index))


def read_index(folder: Path) -> ShardIndex:
    """Read index.json.

    Raises:
        DataError: missing, not ours, or written by a newer version.
    """
    path = folder / INDEX
    if not path.is_file():
        raise DataError(f"{folder} has no {INDEX}: pack it with `excitor-mm pack-coco`, or let it finish.")
    return parse_index(path.read_bytes(), str(path))


def parse_index(content: bytes, name: str) -> ShardIndex:
    """The content of an index.json.

    Raises:
        DataError: not ours, or written by a newer version.
    """
    try:
        index = from_dict(ShardIndex, json.loads(content))
        if index.format_version != FORMAT_VERSION:
            raise ValueError(f"format version {index.format_version}, expected {FORMAT_VERSION}")
        outside = [shard.name for shard in index.shards if not _plain(shard.name)]
        if outside:
            raise ValueError(f"shard {outside[0]!r} is not a file name")
    except (ValueError, TypeError, RecursionError, ConfigError) as error:
        raise DataError(f"{name} is not an index this version reads ({error}): pack the folder again.") from error
    return index


def _plain(name: str) -> bool:
    """False for what leaves the folder."""
    return name not in ("", ".", "..") and not set(name) & set("/\\#?")
