"""reader: the training stream with two processes, against Pillow alone in two processes."""

from __future__ import annotations

import io
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

from PIL import Image

from excitor_mm.data.images import load_image
from excitor_mm.data.samples import Sample
from excitor_mm.data.shards import list_shards, read_shard
from excitor_mm.data.stream import TrainingStream, training_steps
from excitor_mm.vision.preprocess import Preprocessing
from suites.measure import Comparison, Side

WORKERS = 2
PREPROCESSING = Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic")


def reader(options: Namespace) -> list[Comparison]:
    """Decode and resize to 224 x 224; ours also batches and hands over to the training process, which normalises."""
    shards = list_shards(options.images)
    images = [s.image for shard in shards for s in read_shard(shard, lambda _: None) if s.image][: options.count]
    pool = ProcessPoolExecutor(WORKERS)

    def ours(enough: int | None) -> Side:
        transform = partial(_prepare, PREPROCESSING.transform(), enough)
        stream = TrainingStream(shards, transform, batch_size=options.batch_size, seed=0)

        def side() -> float:
            items = training_steps(stream, WORKERS)
            next(items)  # the processes have started
            batches = max(1, len(images) // options.batch_size)
            started = time.perf_counter()
            for _ in islice(items, batches):
                pass
            return (time.perf_counter() - started) / batches / options.batch_size * len(images)

        return side

    def pillow() -> None:
        list(pool.map(_pillow, images, chunksize=16))

    sides: dict[str, Side] = {
        "our stream": ours(None),
        "our stream, draft decoding": ours(224),
        "Pillow alone": pillow,
    }
    width, height = Image.open(io.BytesIO(images[0])).size
    facts = {
        "pictures": len(images),
        "first": f"{width} x {height}",
        "processes": WORKERS,
        "batch": options.batch_size,
    }
    return [Comparison("reader", sides, len(images), "image", facts=facts)]


def _prepare(transform: Callable[[Any], Any], enough: int | None, sample: Sample, epoch: int) -> Any:
    assert sample.image is not None
    return transform(load_image(sample.image, enough=enough))


def _pillow(image: bytes) -> bytes:
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    side = 224 / min(picture.size)
    size = (round(picture.width * side), round(picture.height * side))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (picture.width - 224) // 2, (picture.height - 224) // 2
    return picture.crop((left, top, left + 224, top + 224)).tobytes()[:1]  # the picture itself need not travel
