"""COCO images with their captions and questions, packed to shards; `data/annotations.py` reads the files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from excitor_mm.data.annotations import read_records
from excitor_mm.data.pack import DataSet, PackReport, pack, source_facts


@dataclass(frozen=True)
class Source:
    """The files to pack from."""

    images: Path
    """Folder with the pictures, or with train2014/, val2014/ in it."""
    captions: Path | None = None
    """COCO captions JSON, plain or gzipped, or image_info_test2014.json; may be left out with `karpathy`."""
    karpathy: Path | None = None
    """Karpathy's dataset_coco.json."""
    ids: Path | None = None
    """JSON {"train": [ids], "test": [ids]}, another way to name splits."""
    split: str | None = None
    """train (with karpathy: train + restval), train-only, restval, val or test; or a name in `ids`."""
    questions: Path | None = None
    """VQAv2 questions JSON."""
    answers: Path | None = None
    """VQAv2 annotations JSON."""


def pack_coco(source: Source, output: Path, *, name: str = "coco", **options: Any) -> PackReport:
    """Pack COCO into `output`; options and errors as in `pack`."""
    return pack(read_coco(source), output, name=name, **options)


def read_coco(source: Source) -> DataSet:
    """All images of the chosen split.

    Raises:
        DataError: unusable annotation files.
    """
    records, problems = read_records(source)
    facts = source_facts(**asdict(source))
    return DataSet(records, facts, problems)
