"""Records of a data set to WebDataset shards, whatever the data set: one sample an image, or a text alone.

Shards are a fixed plan of the records (shuffled by a constant seed, so that shards are alike), so an interrupted run
goes on with the shards that are missing and the same input gives the same bytes whatever the number of workers.
Images are verified by decoding them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from excitor_mm.console import Progress
from excitor_mm.data.images import BadImage, load_image
from excitor_mm.data.index import INDEX, ShardEntry, ShardIndex, write_index, write_shard
from excitor_mm.data.samples import Sample
from excitor_mm.errors import ConfigError, DataError
from excitor_mm.files import write_json

PLAN = ".plan.json"
LOCK = ".lock"
PROBLEMS = "problems.json"
NAME = re.compile(r"\w[\w.-]*", re.ASCII)
Id = int | str


class Record(NamedTuple):
    """One sample of the data set, its image not read yet."""

    sample: Sample
    paths: tuple[Path, ...] = ()
    """Where the image file may lie, the likeliest first; empty: a text alone."""


@dataclass(frozen=True)
class DataSet:
    """What the reader of a data set's files gives."""

    records: list[Record]
    source: dict[str, str]
    """Where they come from, for index.json."""
    problems: dict[str, list[Id]] = field(default_factory=dict)
    """What cannot be packed -> ids."""


@dataclass(frozen=True)
class PackReport:
    """What was packed and what could not be."""

    samples: int
    captions: int
    questions: int
    shards: int
    problems: dict[str, list[Id]]
    """missing, unreadable, duplicate, without captions, not in the captions, without an answer -> ids."""
    seconds: float


def pack(
    data: DataSet,
    output: Path,
    *,
    name: str,
    samples_per_shard: int = 1000,
    max_size: int | None = None,
    allow_missing: bool = False,
    workers: int | None = None,
) -> PackReport:
    """Pack a data set into `output`.

    Args:
        data: from one of the readers.
        output: a new folder, or one that an interrupted run left.
        name: shards are called <name>-000000.tar and so on.
        samples_per_shard: samples in a shard.
        max_size: longest allowed shorter side in pixels; larger pictures are re-encoded. None: bytes untouched.
        allow_missing: write index.json although something cannot be used.
        workers: processes; None: one for each core.

    Raises:
        DataError: another plan in the folder, or records that cannot be used without `allow_missing`; everything
            usable is packed by then.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"--name is {name!r}, expected letters, digits, points, hyphens and underscores.")
    started = time.monotonic()
    records = sorted(data.records, key=lambda record: record.sample.key)
    random.Random(0).shuffle(records)
    groups = [records[i : i + samples_per_shard] for i in range(0, len(records), samples_per_shard)]
    output.mkdir(parents=True, exist_ok=True)
    entries: list[ShardEntry] = []
    problems = {reason: list(ids) for reason, ids in data.problems.items()}
    with (
        _claimed(output, records, [name, samples_per_shard, max_size]),
        ProcessPoolExecutor(workers or os.cpu_count(), initializer=_ignore_interrupts) as pool,
        Progress(f"packing {output.name}", total=len(records), unit="samples") as bar,
    ):
        for number, group in enumerate(groups):
            path = output / f"{name}-{number:06d}.tar"
            entry, bad = _finished(path)
            if entry is None:
                tasks = [(record, max_size) for record in group]
                results = list(pool.map(_sample, tasks, chunksize=8))
                good = [result for result in results if isinstance(result, Sample)]
                bad = {}
                for result in results:
                    if not isinstance(result, Sample):
                        bad.setdefault(result[0], []).append(result[1])
                entry = write_shard(path, good)
                write_json(_receipt(path), {"entry": asdict(entry), "bad": bad})
            entries.append(entry)
            for reason, ids in bad.items():
                problems.setdefault(reason, []).extend(ids)
            bar.advance(len(group))
    report = PackReport(
        samples=sum(entry.samples for entry in entries),
        captions=sum(entry.captions for entry in entries),
        questions=sum(entry.questions for entry in entries),
        shards=len(entries),
        problems={reason: sorted(ids, key=_order) for reason, ids in sorted(problems.items()) if ids},
        seconds=time.monotonic() - started,
    )
    if report.problems:
        write_json(output / PROBLEMS, report.problems)
        if not allow_missing:
            listed = "; ".join(f"{len(ids)} {reason} {ids[:10]}" for reason, ids in report.problems.items())
            raise DataError(
                f"Some samples cannot be packed: {listed}. All ids are in {output / PROBLEMS}; put the files "
                "right and delete the folder, or repeat the command with --allow-missing."
            )
    write_index(output, ShardIndex(name, entries, data.source))
    for path in output.glob(".*"):
        path.unlink(missing_ok=True)
    return report


def _ignore_interrupts() -> None:
    """In a worker process: Ctrl-C reaches the main process, which ends the workers without their tracebacks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def source_facts(**files: Path | str | None) -> dict[str, str]:
    """For index.json: names of files, and other facts as they are, without those that are None."""
    return {
        key: value.name if isinstance(value, Path) else value for key, value in files.items() if value is not None
    }


def _order(value: Id) -> tuple[int, str]:
    """Numbers by size, then texts."""
    return (value, "") if isinstance(value, int) else (1 << 62, value)


@contextlib.contextmanager
def _claimed(output: Path, records: Sequence[Record], settings: list[Any]) -> Iterator[None]:
    """Keep other processes out, refuse a folder that holds another plan, note ours, and clear what a kill left."""
    lock = FileLock(output / LOCK)
    try:
        with lock.acquire(timeout=0):
            _claim(output, records, settings)
            for path in output.glob(".*.tar-*"):
                path.unlink()
            yield
    except Timeout as error:
        raise DataError(f"Another process packs into {output}: wait for it, or choose another --output.") from error


def _claim(output: Path, records: Sequence[Record], settings: list[Any]) -> None:
    if (output / INDEX).exists():
        raise DataError(f"{output} is already packed: choose another --output or delete it.")
    text = repr([record.sample for record in records]) + repr(settings)
    plan = {"plan": hashlib.sha256(text.encode()).hexdigest()}
    path = output / PLAN
    if path.exists() and json.loads(path.read_text()) != plan:
        raise DataError(f"{output} holds a half-finished pack of other input: choose another --output or delete it.")
    if not path.exists() and any(file.name != LOCK for file in output.iterdir()):
        raise DataError(f"{output} is not empty: choose another --output.")
    write_json(path, plan)


def _receipt(path: Path) -> Path:
    return path.with_name(f".{path.name}.receipt")


def _finished(path: Path) -> tuple[ShardEntry | None, dict[str, list[Id]]]:
    """The receipt of a shard that an earlier run completed."""
    if not (path.exists() and _receipt(path).exists()):
        return None, {}
    receipt = json.loads(_receipt(path).read_text())
    return ShardEntry(**receipt["entry"]), receipt["bad"]


def _sample(task: tuple[Record, int | None]) -> Sample | tuple[str, Id]:
    """In a worker process: a verified sample, or (problem, id)."""
    (sample, paths), max_size = task
    if not paths:
        return sample
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return "missing", sample.image_id
    try:
        data = path.read_bytes()
        image = load_image(data)
    except (BadImage, OSError):
        return "unreadable", sample.image_id
    if max_size is not None and min(image.size) > max_size:
        scale = max_size / min(image.size)
        buffer = io.BytesIO()
        image.resize((round(image.width * scale), round(image.height * scale))).save(buffer, "JPEG", quality=95)
        data = buffer.getvalue()
    return dataclasses.replace(sample, image=data)
