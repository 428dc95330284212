"""Captions for many pictures: read ahead, captioned in batches, written as records.

A batch holds prepared pixels only, all of the encoders' size, so its memory does not depend on the pictures'.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timezone
from typing import NamedTuple

from torch import Tensor

from excitor_mm.caption_files import Output
from excitor_mm.config import DecodingConfig
from excitor_mm.console import Progress, seconds_as_clock
from excitor_mm.data.images import BadImage
from excitor_mm.model import ExcitorModel
from excitor_mm.pictures import Collection, Picture


class Captioned(NamedTuple):
    """What became of one picture."""

    path: str
    caption: str | None
    """None where the picture cannot be read."""
    error: str = ""
    """Why, in a sentence."""


@dataclasses.dataclass
class Summary:
    """What became of a collection."""

    captioned: int = 0
    skipped: int = 0
    """Captioned already by an earlier run."""
    unreadable: dict[str, str] = dataclasses.field(default_factory=dict)
    """Path -> why, in a sentence."""
    seconds: float = 0.0

    def __str__(self) -> str:
        rate = self.captioned / max(self.seconds, 1e-9)
        return (
            f"{self.captioned} captioned in {seconds_as_clock(self.seconds)}, {rate:.1f} images/s; "
            f"{self.skipped} were captioned already; {len(self.unreadable)} are unreadable"
        )


def caption_collection(
    model: ExcitorModel,
    collection: Collection,
    output: Output,
    *,
    adapter: str,
    batch_size: int = 8,
    workers: int = 2,
    prompt: str | None = None,
    decoding: DecodingConfig | None = None,
) -> Summary:
    """Caption what `output` does not have yet; each batch is written before the next one starts.

    Args:
        model, batch_size, workers, prompt, decoding: see `caption_pictures`.
        collection: from `find_pictures` or `watch_pictures`.
        output: where the records go.
        adapter: its name, for the records.
    """
    summary, started = Summary(), time.monotonic()
    used = dataclasses.asdict(decoding or model.config.decoding)
    settings = {"adapter": adapter, "prompt": prompt, "decoding": used}
    total = None if collection.count is None else collection.count - sum(map(output.has, collection.files))

    def wanted() -> Iterator[Picture]:
        for picture in collection.pictures(summary.unreadable.__setitem__):
            if output.has(picture.path):
                summary.skipped += 1
            else:
                yield picture

    with Progress("captioning", total, "images") as bar:
        for batch in caption_pictures(
            model, wanted(), batch_size=batch_size, workers=workers, prompt=prompt, decoding=decoding
        ):
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            records = [{"path": r.path, "caption": r.caption, **settings, "time": now} for r in batch if not r.error]
            output.write(records)
            summary.captioned += len(records)
            summary.unreadable |= {result.path: result.error for result in batch if result.error}
            bar.advance(len(batch))
    summary.seconds = time.monotonic() - started
    return summary


def caption_pictures(
    model: ExcitorModel,
    pictures: Iterable[Picture],
    *,
    batch_size: int = 8,
    workers: int = 2,
    prompt: str | None = None,
    decoding: DecodingConfig | None = None,
) -> Iterator[list[Captioned]]:
    """Caption pictures in order, a batch at a time; one that cannot be read does not stop the others.

    Args:
        model: from `ExcitorModel.from_pretrained`.
        pictures: from `Collection.pictures`; read two batches ahead.
        batch_size: pictures at a time.
        workers: threads that read, decode and resize.
        prompt, decoding: replace the adapter's own.
    """
    text = prompt or model.processor.caption_ids()
    with ThreadPoolExecutor(workers) as pool:
        ahead = _read_ahead(pool, model, pictures, 2 * batch_size)
        while batch := list(itertools.islice(ahead, batch_size)):
            results: list[Captioned] = []
            pixels: list[list[Tensor]] = []
            for path, future in batch:
                try:
                    pixels.append(future.result())
                    results.append(Captioned(path, ""))
                except BadImage as error:
                    results.append(Captioned(path, None, str(error)))
            captions: list[str] = []
            if pixels:
                inputs = model.processor.collate([text] * len(pixels), pixels)
                captions = model.processor.batch_decode(model.generate(**inputs, decoding=decoding))
            written = iter(captions)
            yield [result if result.error else Captioned(result.path, next(written)) for result in results]


def _read_ahead(
    pool: ThreadPoolExecutor, model: ExcitorModel, pictures: Iterable[Picture], number: int
) -> Iterator[tuple[str, Future[list[Tensor]]]]:
    """Pictures in order, `number` of them being prepared at any time."""
    waiting: deque[tuple[str, Future[list[Tensor]]]] = deque()
    for picture in pictures:
        waiting.append((picture.path, pool.submit(model.processor.pixels, picture.source)))
        if len(waiting) > number:
            yield waiting.popleft()
    yield from waiting
