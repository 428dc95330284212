"""Caption files read for scoring: predictions, and references in any of their formats."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from excitor_mm.data.annotations import KARPATHY_SPLITS
from excitor_mm.data.samples import clean_caption
from excitor_mm.data.shards import BadRecord, list_shards, read_shard
from excitor_mm.errors import DataError
from excitor_mm.files import read_json, read_rows

Id = int | str


def read_predictions(path: Path) -> dict[Id, str]:
    """Image id -> caption, from our predictions.jsonl or a COCO results list.

    Raises:
        DataError: not such a file, a caption that is not a text, or an image twice.
    """
    return _one_each(path, "image_id", "caption")


def read_answers(path: Path) -> dict[Id, str]:
    """Question id -> answer, from predictions.jsonl or a VQA results list; VizWiz names the image instead.

    Raises:
        DataError: not such a file, an answer that is not a text, or a question twice.
    """
    rows = read_rows(path)
    is_vizwiz = isinstance(rows[0], dict) and "question_id" not in rows[0] and "image" in rows[0]
    return _one_each(path, "image" if is_vizwiz else "question_id", "answer")


def _one_each(path: Path, key: str, value: str) -> dict[Id, str]:
    found: dict[Id, str] = {}
    for row in read_rows(path):
        if not isinstance(row, dict) or not isinstance(row.get(key), (int, str)) or isinstance(row[key], bool):
            raise DataError(f"{path}: a row has no {key}, expected a number or a text: {str(row)[:80]}")
        if not isinstance(row.get(value), str):
            raise DataError(f"{path}: the {value} of {row[key]} is not a text: {str(row)[:80]}")
        if row[key] in found:
            raise DataError(f"{path} has {key} {row[key]} twice: keep one prediction for each.")
        found[row[key]] = row[value]
    return found


def read_references(path: str, split: str | None = None, ids: Path | None = None) -> dict[Id, list[str]]:
    """Image id -> reference captions.

    Args:
        path: COCO annotations (.json, .json.gz), Karpathy's dataset_coco.json, or shards.
        split: of Karpathy's file, or a list in `ids`.
        ids: which images count: JSON {"test": [ids]}, or lines "path id".

    Raises:
        DataError: not such files, or no image left.
    """
    is_json = Path(path).suffix in (".json", ".gz")
    references = _from_json(Path(path), split) if is_json else _from_shards(path)
    if ids is not None:
        wanted = _wanted(ids, split)
        references = {i: captions for i, captions in references.items() if i in wanted}
    if not references:
        raise DataError(f"No reference image is left of {path}: check --split and --ids.")
    return references


def _from_json(path: Path, split: str | None) -> dict[Id, list[str]]:
    value = read_json(path)
    references: dict[Id, list[str]] = {}
    try:
        if "annotations" in value:
            for row in value["annotations"]:
                references.setdefault(row["image_id"], []).append(clean_caption(row["caption"]))
            return references
        if split not in KARPATHY_SPLITS:
            raise DataError(f"--split is {split!r}: for {path.name} choose {', '.join(KARPATHY_SPLITS)}.")
        for image in value["images"]:
            if image["split"] in KARPATHY_SPLITS[split]:
                references[image["cocoid"]] = [clean_caption(s["raw"]) for s in image["sentences"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is neither COCO captions nor Karpathy's file (no {error}).") from error
    return references


def _from_shards(path: str) -> dict[Id, list[str]]:
    bad: list[BadRecord] = []
    references: dict[Id, list[str]] = {}
    for shard in list_shards(path):
        for sample in read_shard(shard, bad.append):
            if sample.captions:
                references[sample.image_id] = list(sample.captions)
    if bad:
        raise DataError(
            f"{len(bad)} samples of {path} cannot be read (first: {bad[0]}): run `excitor-mm shards check`."
        )
    return references


def _wanted(path: Path, split: str | None) -> set[Id]:
    if path.suffix == ".json":
        lists = read_json(path)
        if not isinstance(lists, dict) or not isinstance(lists.get(split or ""), list):
            raise DataError(f"{path} has no list {split!r}: name one of its lists with --split.")
        return set(lists[split or ""])
    try:
        return {int(line.split()[-1]) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a list of lines 'path id' ({error}).") from error


def ids_hash(ids: Iterable[Id]) -> str:
    """Equal for equal images or questions, whatever is said about them."""
    return hashlib.sha256(json.dumps(sorted(map(str, ids))).encode()).hexdigest()[:16]


def references_hash(references: Mapping[Id, Sequence[str]]) -> str:
    """Equal for equal images and captions, whatever the file format."""
    rows = sorted([str(i), sorted(captions)] for i, captions in references.items())
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
