"""Captions for files, and predictions for shards."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from torch import Tensor

from excitor_mm.config import DecodingConfig
from excitor_mm.console import Progress, log
from excitor_mm.data.images import BadImage, load_image
from excitor_mm.data.index import write_json
from excitor_mm.data.samples import BadSample, Sample
from excitor_mm.data.shards import expected_samples, list_shards
from excitor_mm.data.stream import EvaluationStream, read_stream
from excitor_mm.errors import DataError
from excitor_mm.model import ExcitorModel
from excitor_mm.references import read_predictions

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class Captioned(NamedTuple):
    """One line of output: a caption, or why there is none."""

    path: str
    caption: str | None
    error: str | None = None


def find_images(names: Sequence[str], stdin: IO[str]) -> list[str]:
    """Paths of pictures from files, folders (searched through), globs, and `-` (paths on stdin).

    Raises:
        DataError: a name that matches nothing.
    """
    found: list[str] = []
    for name in names:
        if name == "-":
            found += [line.rstrip("\r\n") for line in stdin if line.strip()]
        elif Path(name).is_dir():
            files = sorted(path for path in Path(name).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
            found += map(str, files)
        elif Path(name).exists() or not glob.has_magic(name):
            found.append(name)
        else:
            found += sorted(glob.glob(name, recursive=True))
    if not found:
        raise DataError(f"No picture found in {' '.join(names)}: give files, folders or globs.")
    return found


def caption_files(
    model: ExcitorModel,
    paths: Sequence[str],
    *,
    batch_size: int = 8,
    prompt: str | None = None,
    decoding: DecodingConfig | None = None,
) -> Iterator[Captioned]:
    """Caption pictures in batches, in order; one that cannot be read does not stop the others."""
    for start in range(0, len(paths), batch_size):
        chunk = paths[start : start + batch_size]
        results: dict[int, Captioned] = {}
        images = []
        for index, path in enumerate(chunk):
            try:
                images.append((index, load_image(path)))
            except BadImage as error:
                results[index] = Captioned(path, None, str(error))
        if images:
            captions = model.caption([image for _, image in images], prompt=prompt, decoding=decoding)
            for (index, _), caption in zip(images, captions, strict=True):
                results[index] = Captioned(chunk[index], caption)
        yield from (results[index] for index in range(len(chunk)))


@dataclasses.dataclass(frozen=True)
class _Prepare:
    """The transform of an evaluation stream: a sample to (image id, key, pixels)."""

    transform: Callable[[Any], list[Tensor]]

    def __call__(self, sample: Sample, epoch: int) -> tuple[int | str, str, list[Tensor]]:
        if sample.image is None:
            raise BadSample("no image", f"{sample.shard}: sample {sample.key} has no image.")
        return sample.image_id, sample.key, self.transform(load_image(sample.image))


def predict(
    model: ExcitorModel,
    shards: str,
    output: Path,
    *,
    adapter: str,
    batch_size: int = 16,
    workers: int = 2,
    prompt: str | None = None,
    decoding: DecodingConfig | None = None,
    overwrite: bool = False,
) -> int:
    """Caption every sample of the shards once.

    An interrupted run goes on where it stopped. Beside the predictions lies <stem>.meta.json with adapter,
    prompt and decoding, for the report.

    Args:
        model: from `ExcitorModel.from_pretrained`.
        shards: see `list_shards`.
        output: predictions.jsonl, lines {"image_id", "key", "caption"}.
        adapter: its name, for the report.
        batch_size: images at a time.
        workers: processes that decode.
        prompt, decoding: replace the adapter's own.
        overwrite: start anew.

    Returns:
        Number of predictions in the file.

    Raises:
        DataError: other predictions in the file, or samples that could not be read.
    """
    decoding = decoding or model.config.decoding
    text = prompt or model.processor.prompt
    expected = expected_samples(shards)
    meta = {"adapter": adapter, "shards": shards, "prompt": text, "decoding": dataclasses.asdict(decoding)}
    done = _claim(output, meta, overwrite)
    stream = EvaluationStream(
        list_shards(shards),
        _Prepare(model.tower.transform()),
        list,
        batch_size=batch_size,
        skip_ids=frozenset(done),
    )
    seen = set(done)
    bad = 0
    with (
        output.open("a", encoding="utf-8") as file,
        Progress("captioning", expected, "images", done=len(done)) as bar,
    ):
        for item in read_stream(stream, workers):
            for record in item.bad:
                log(f"bad sample {record.key} in {record.shard}: {record.reason}")
            bad += len(item.bad)
            if not item.batch:
                continue
            ids, keys, pixels = zip(*item.batch, strict=True)
            inputs = model.processor.collate([text] * len(ids), pixels)
            captions = model.processor.batch_decode(model.generate(**inputs, decoding=decoding))
            for image_id, key, caption in zip(ids, keys, captions, strict=True):
                if image_id in seen:
                    raise DataError(f"Image {image_id} is twice in {shards}: pack the images once each.")
                seen.add(image_id)
                row = {"image_id": image_id, "key": key, "caption": caption}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            bar.advance(len(ids))
        os.fsync(file.fileno())
    if bad or (expected is not None and len(seen) != expected):
        raise DataError(
            f"{len(seen)} of {expected} samples of {shards} are captioned, {bad} cannot be read: "
            "run `excitor-mm shards check`."
        )
    return len(seen)


def _claim(output: Path, meta: dict[str, Any], overwrite: bool) -> set[int | str]:
    """The ids that an interrupted run with the same settings already wrote."""
    output.parent.mkdir(parents=True, exist_ok=True)
    meta_path = output.with_suffix(".meta.json")
    if overwrite:
        output.unlink(missing_ok=True)
    if not output.exists():
        write_json(meta_path, meta)
        return set()
    if not meta_path.exists() or json.loads(meta_path.read_text(encoding="utf-8")) != meta:
        raise DataError(f"{output} holds predictions of other settings: add --overwrite or change --output.")
    text = output.read_text(encoding="utf-8")
    if not text.endswith("\n"):  # the last line was cut off
        output.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
    return set(read_predictions(output))
