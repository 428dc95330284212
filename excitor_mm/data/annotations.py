"""COCO captions and Karpathy's split, with VQAv2 questions where wanted, read into one record an image."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excitor_mm.data.pack import Id, Record
from excitor_mm.data.samples import Sample, clean_caption
from excitor_mm.data.vqa import listed_rows, read_questions
from excitor_mm.errors import DataError
from excitor_mm.files import read_json

if TYPE_CHECKING:
    from excitor_mm.data.coco import Source

KARPATHY_SPLITS = {
    "train": ("train", "restval"),
    "train-only": ("train",),
    "restval": ("restval",),
    "val": ("val",),
    "test": ("test",),
}


def read_records(source: Source) -> tuple[list[Record], dict[str, list[Id]]]:
    """All images of the chosen split, and the ids that cannot be packed: named twice, without captions or unknown.

    Raises:
        DataError: a file that is not what it should be, or a split that does not exist.
    """
    if source.captions is None and source.karpathy is None:
        raise DataError("Neither --captions nor --karpathy is given: one of them must name the captions.")
    files, captions = _from_coco(source) if source.captions else ({}, {})
    problems: dict[str, list[Id]] = {}
    if source.karpathy:
        chosen, raw = _from_karpathy(source)
        captions = {i: captions.get(i) or raw[i] for i in chosen}
        files = chosen
    elif source.split:
        wanted = _ids_of(source)
        problems["not in the captions"] = [i for i in wanted if i not in files]
        files = {i: names for i, names in files.items() if i in wanted}
    if not files:
        raise DataError(f"No image is left of {source.captions or source.karpathy}: check --split.")
    questions = read_questions(source.questions, source.answers) if source.questions else {}
    problems["duplicate"] = [i for i, names in files.items() if len(names) > 1]
    wordless: list[Id] = [i for i in files if not captions.get(i) and not questions.get(i)]
    problems["without captions"] = wordless if captions or questions else []  # test2014 has none at all
    unusable = {i for ids in problems.values() for i in ids}
    records = [
        Record(
            Sample(f"{i:012d}", i, None, tuple(captions.get(i, ())), tuple(questions.get(i, ()))),
            tuple(source.images / part for part in dict.fromkeys((names[0], Path(names[0]).name))),
        )
        for i, names in files.items()
        if i not in unusable
    ]
    return records, problems


def _number(path: Path, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise DataError(f"{path}: an image id is {value!r}, expected a whole number.")
    return value


def _from_coco(source: Source) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Image id -> file names (more than one: named twice), and -> captions."""
    path = source.captions
    assert path is not None
    value = read_json(path)
    files: dict[int, list[str]] = {}
    for row in listed_rows(path, value, "images", "id", "file_name"):
        files.setdefault(_number(path, row["id"]), []).append(str(row["file_name"]))
    uses = Counter(name for names in files.values() for name in set(names))
    for names in files.values():
        if uses[names[0]] > 1:
            names.append(names[0])  # the same file under two ids: both are duplicates
    captions: dict[int, list[str]] = {}
    for row in listed_rows(path, value, "annotations", "image_id", "caption") if "annotations" in value else []:
        text = row["caption"]
        if not isinstance(text, str):
            raise DataError(f"{path}: a caption of image {row['image_id']!r} is not a text: {str(text)[:80]}")
        if clean_caption(text):
            captions.setdefault(_number(path, row["image_id"]), []).append(clean_caption(text))
    return files, captions


def _from_karpathy(source: Source) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """The chosen split, joined by cocoid: image id -> files, and -> raw sentences."""
    path = source.karpathy
    assert path is not None
    if source.split not in KARPATHY_SPLITS:
        raise DataError(f"--split is {source.split!r}: with --karpathy choose {', '.join(KARPATHY_SPLITS)}.")
    files: dict[int, list[str]] = {}
    captions: dict[int, list[str]] = {}
    rows = listed_rows(path, read_json(path), "images", "cocoid", "filename", "split", "sentences")
    for row in rows:
        if row["split"] in KARPATHY_SPLITS[source.split]:
            image_id = _number(path, row["cocoid"])
            files.setdefault(image_id, []).append(f"{row.get('filepath', '.')}/{row['filename']}")
            sentences = listed_rows(path, row, "sentences", "raw")
            captions[image_id] = [clean_caption(str(sentence["raw"])) for sentence in sentences]
    return files, captions


def _ids_of(source: Source) -> set[int]:
    """The ids of a split in {"train": [...], "test": [...]}."""
    if source.ids is None:
        raise DataError(f"--split {source.split} needs --karpathy or --ids to know which images it has.")
    splits = read_json(source.ids)
    if not isinstance(splits, dict) or not isinstance(splits.get(source.split), list):
        raise DataError(f"{source.ids} has no list {source.split!r}: it must be an object of lists of image ids.")
    return {_number(source.ids, value) for value in splits[source.split]}
