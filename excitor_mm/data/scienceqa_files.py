"""ScienceQA's files, read into one record a problem for packing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from excitor_mm.data.pack import DataSet, Record, source_facts
from excitor_mm.data.samples import Sample, clean_caption
from excitor_mm.data.scienceqa import read_problems
from excitor_mm.errors import DataError
from excitor_mm.files import read_json


def read_scienceqa(
    problems: Path,
    images: Path | None,
    *,
    splits: Path | None = None,
    split: str | None = None,
    captions: Path | None = None,
    subset: bool = False,
) -> DataSet:
    """One record a problem.

    Args:
        problems, splits, split, subset: see `read_problems`.
        images: folder with <split>/<id>/image.png; None: all problems are packed without their images.
        captions: captions.json of the images, which join the context.

    Raises:
        DataError: not such files.
    """
    found, _ = read_problems(problems, splits, split, subset)
    said = read_json(captions) if captions is not None else {}
    said = said.get("captions", said) if isinstance(said, dict) else None
    if not isinstance(said, dict):
        raise DataError(f"{captions} is not an object of captions: give ScienceQA's captions.json.")
    records = []
    for i, problem in found.items():
        paths = (images / problem.split / i / problem.image,) if images is not None and problem.image else ()
        kept = problem if paths else dataclasses.replace(problem, image=None)
        caption = clean_caption(str(said.get(i) or ""))
        sample = Sample(i.zfill(12), i, None, (caption,) if caption else (), problem=kept)
        records.append(Record(sample, paths))
    return DataSet(records, source_facts(problems=problems, images=images, split=split, captions=captions))
