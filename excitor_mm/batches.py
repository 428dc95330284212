"""The batches of a training run: one stream, or several mixed by weight."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from accelerate import Accelerator

from excitor_mm.config import RunConfig, SourceConfig
from excitor_mm.data.pipeline import Batch, ExampleMaker, collate
from excitor_mm.data.shards import list_shards
from excitor_mm.data.stream import StreamItem, TrainingStream, read_stream
from excitor_mm.model import ExcitorModel


def training_batches(config: RunConfig, model: ExcitorModel, accelerator: Accelerator, start: int) -> Iterator[Batch]:
    """Batches of this rank from position `start`."""
    sources = config.training_sources()
    order = mixed_order([source.weight for source in sources])
    taken = [0] * len(sources)
    for _ in range(start):
        taken[next(order)] += 1
    streams = [
        _stream(config, source, model, accelerator, position) for source, position in zip(sources, taken, strict=True)
    ]
    for place in order:
        item = next(streams[place])
        yield item.batch


def mixed_order(weights: Sequence[float]) -> Iterator[int]:
    """Which source gives each batch, for ever: after any number of batches each has its share, to within one.

    A function of the weights alone, so all ranks take from the same source at the same time and a resumed run finds
    its place by counting.
    """
    total = sum(weights)
    credit = [0.0] * len(weights)
    while True:
        credit = [have + weight / total for have, weight in zip(credit, weights, strict=True)]
        place = max(range(len(weights)), key=credit.__getitem__)
        credit[place] -= 1
        yield place


def _stream(
    config: RunConfig, source: SourceConfig, model: ExcitorModel, accelerator: Accelerator, start: int
) -> Iterator[StreamItem]:
    settings, data = config.train, config.data
    tokenizer = model.processor.tokenizer
    maker = ExampleMaker(
        tokenizer,
        model.task_format(source.task),
        model.tower.transform(data.crop_scale, data.flip),
        settings.seed,
        data.max_pixels,
        draw=True,
    )
    stream = TrainingStream(
        list_shards(source.shards),
        maker,
        functools.partial(collate, padding=tokenizer.pad_token_id),
        batch_size=settings.batch_size // (accelerator.num_processes * settings.accumulation),
        seed=settings.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        shuffle_buffer=data.shuffle_buffer,
        max_bad_fraction=data.max_bad_fraction,
        start_batch=start,
    )
    return read_stream(stream, data.workers)
