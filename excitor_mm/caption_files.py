"""Where captions go: stdout, a .jsonl or .csv file that grows and is resumed, or a text file beside each picture."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from excitor_mm.errors import ConfigError, DataError
from excitor_mm.files import write_bytes, write_text

FIELDS = ("path", "caption", "adapter", "prompt", "decoding", "time")
"""Of a record: picture, caption, name of the adapter, prompt (null: the adapter's own), how it was decoded, and
when, as an ISO 8601 time."""
SETTINGS = ("adapter", "prompt", "decoding")
ERRORS = "surrogateescape"
"""File names need not be UTF-8; their bytes are kept as they are."""


class Output(Protocol):
    """Something that takes records."""

    def has(self, path: str) -> bool:
        """Whether this picture is captioned already."""
        ...

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take records; when this returns, a killed process does not lose them."""
        ...

    def close(self) -> None:
        """No more records come."""
        ...


class Lines:
    """Captions on stdout.

    Args:
        style: "caption", "path" (path, tab, caption) or "json" (the whole record).
    """

    def __init__(self, style: str) -> None:
        self.style = style

    def has(self, path: str) -> bool:
        return False

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        for record in records:
            line = {"caption": record["caption"], "path": f"{record['path']}\t{record['caption']}"}
            print(line.get(self.style) or json.dumps(dict(record), ensure_ascii=False), flush=True)

    def close(self) -> None:
        pass


class CaptionFile:
    """A file of records. What an interrupted run left is kept, without a last line that was cut off.

    Args:
        path: ends in .jsonl or .csv.
        settings: `SETTINGS` of the records to come.
        overwrite: start anew.

    Raises:
        ConfigError: another ending.
        DataError: records of other settings in the file, another process that writes to it, or no space.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        from filelock import FileLock, Timeout

        if path.suffix not in (".jsonl", ".csv"):
            raise ConfigError(f"--output is {path}: expected a name that ends in .jsonl or .csv.")
        self.path, self.settings = path, dict(settings)
        self.start = '{"path": ' if path.suffix == ".jsonl" else ",".join(FIELDS) + "\n"
        self.lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
            self.done = set() if overwrite else self._resume()
            if not self.done:
                write_text(path, "" if path.suffix == ".jsonl" else self.start)
            self.file = path.open("a", encoding="utf-8", errors=ERRORS, newline="")
        except Timeout as error:
            raise DataError(f"Another process writes to {path}: wait for it or change --output.") from error
        except OSError as error:
            raise DataError(f"{path} cannot be written ({error.strerror}): change --output.") from error

    def _resume(self) -> set[str]:
        """Pictures that an earlier run captioned; a row that was cut off is dropped."""
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content[: _end_of_last_row(content, quoted=self.path.suffix == ".csv")]
        start = self.start.encode()
        try:
            if content and not (content.startswith(start) or start.startswith(content)):
                raise ValueError(f"expected {self.start.strip()!r} first")
            rows = list(_read_rows(whole.decode("utf-8", ERRORS), self.path.suffix))
            paths = [row["path"] for row in rows]
            others = [row for row in rows if {name: row[name] for name in SETTINGS} != self.settings]
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise DataError(
                f"{self.path} holds no captions ({error}): change --output or add --overwrite."
            ) from error
        if others:
            raise DataError(
                f"{self.path} holds captions of another adapter, prompt or decoding: "
                "change --output or add --overwrite."
            )
        if whole != content:
            write_bytes(self.path, whole)
        return set(paths)

    def has(self, path: str) -> bool:
        return path in self.done

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        try:
            for record in records:
                self.done.add(record["path"])
                if self.path.suffix == ".csv":
                    values = {**record, "decoding": json.dumps(record["decoding"])}
                    csv.DictWriter(self.file, FIELDS, lineterminator="\n").writerow(values)
                else:
                    self.file.write(json.dumps(dict(record), ensure_ascii=False) + "\n")
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise DataError(f"{self.path} cannot be written ({error.strerror}): free space and run again.") from error

    def close(self) -> None:
        self.file.close()
        self.lock.release()


def _end_of_last_row(content: bytes, quoted: bool) -> int:
    """Behind the last line break that ends a row; in CSV a quoted caption may hold line breaks too."""
    end = content.rfind(b"\n") + 1
    while quoted and end and content.count(b'"', 0, end) % 2:
        end = content.rfind(b"\n", 0, end - 1) + 1
    return end


def _read_rows(text: str, suffix: str) -> Iterable[dict[str, Any]]:
    if suffix == ".jsonl":
        return [json.loads(line) for line in text.split("\n") if line]
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    return [{**row, "prompt": row["prompt"] or None, "decoding": json.loads(row["decoding"])} for row in rows]


class Sidecars:
    """`photo.txt` beside each `photo.jpg`, as training tools for image models expect it.

    Args:
        overwrite: write again what is there.
    """

    def __init__(self, overwrite: bool = False) -> None:
        self.overwrite = overwrite
        self.owners: dict[Path, str] = {}

    def has(self, path: str) -> bool:
        """Whether this picture has a text file.

        Raises:
            DataError: another picture has the same.
        """
        other = self.owners.setdefault(_sidecar(path), path)
        if other != path:
            raise DataError(f"{other} and {path} would share {_sidecar(path)}: rename one, or use --output.")
        return not self.overwrite and _sidecar(path).exists()

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        for record in records:
            write_text(_sidecar(record["path"]), record["caption"] + "\n")

    def close(self) -> None:
        pass


def _sidecar(path: str) -> Path:
    return Path(path).with_suffix(".txt")
