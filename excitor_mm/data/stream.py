"""Samples for the model: the training steps of one rank, and an exact evaluation pass, for any ranks x workers.

Both are pure functions of their position. Which samples make up a training step depends on (shards, seed, lanes,
shuffle buffer) alone, never on ranks, workers or on whether an image decodes, so a resumed run finds its place by
parsing samples without decoding them, with another number of ranks and workers too. A sample whose image is bad
leaves its place empty.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from excitor_mm.console import log
from excitor_mm.data.order import SampleOrder
from excitor_mm.data.samples import BadSample, Sample
from excitor_mm.data.shards import BadRecord, read_shard
from excitor_mm.data.transport import pack, unpack
from excitor_mm.errors import DataError

Transform = Callable[[Sample, int], Any]
"""(sample, epoch) -> example; may raise BadSample. Runs in the worker."""
Collate = Callable[[list[Any]], Any]
"""Examples -> batch."""
MIN_JUDGED = 100  # samples seen before the share of bad ones is judged


class StreamItem(NamedTuple):
    """What an evaluation stream yields."""

    batch: Any
    """Result of collate; None when a last piece held only bad samples."""
    bad: tuple[BadRecord, ...]
    """Found since the reader's last item."""


class Step(NamedTuple):
    """What one rank gives to one training step."""

    examples: dict[int, Any]
    """Position in the order of samples -> example, rising; a bad sample's position is missing."""
    bad: tuple[BadRecord, ...]
    """Found since the last step."""


def reader_slice(shards: Sequence[str], reader: int, readers: int) -> list[tuple[str, int, int]]:
    """What one reader of several reads: (shard, first sample, step).

    With at least as many shards as readers each has shards of its own; otherwise readers share a shard by
    taking every n-th sample, so that none is left without work.
    """
    if len(shards) >= readers:
        return [(shard, 0, 1) for shard in shards[reader::readers]]
    shard = reader % len(shards)
    sharers = len(range(shard, readers, len(shards)))
    return [(shards[shard], reader // len(shards), sharers)]


class _Reader:
    """One reader's bad samples and their share."""

    def __init__(self, max_bad_fraction: float) -> None:
        self.max_bad_fraction = max_bad_fraction
        self.seen = 0
        self.reasons: Counter[str] = Counter()
        self.fresh: list[BadRecord] = []

    def bad(self, record: BadRecord) -> None:
        """Count it; stop when there are too many."""
        self.reasons[record.reason] += 1
        self.fresh.append(record)

    def judge(self, final: bool = False) -> None:
        """Raise DataError when the share of bad samples is above the limit."""
        count, total = self.reasons.total(), self.seen
        if (final or total >= MIN_JUDGED) and count > self.max_bad_fraction * total:
            reasons = ", ".join(f"{n} {reason}" for reason, n in self.reasons.most_common())
            record = self.fresh[-1] if self.fresh else None
            where = f" (last: {record.key} in {record.shard})" if record else ""
            raise DataError(
                f"{count} of {total} samples cannot be used: {reasons}{where}. At most a share of "
                f"{self.max_bad_fraction} is accepted: run `excitor-mm shards check`, or raise data.max_bad_fraction."
            )

    def take(self) -> tuple[BadRecord, ...]:
        """The records since the last call."""
        fresh, self.fresh = tuple(self.fresh), []
        return fresh

    def samples(self, parts: Sequence[tuple[str, int, int]]) -> Iterator[Sample]:
        """All good samples of the given parts of shards; sharers of a shard take its bad records in turn, too."""
        for shard, first, step in parts:
            on_bad = partial(self._unreadable, itertools.cycle(range(step)), first)
            for turn, sample in zip(itertools.cycle(range(step)), read_shard(shard, on_bad), strict=False):
                if turn == first:
                    self.seen += 1
                    yield sample

    def _unreadable(self, turns: Iterator[int], mine: int, record: BadRecord) -> None:
        if next(turns) == mine:
            self.seen += 1
            self.bad(record)


class TrainingStream(IterableDataset):
    """The training steps of one rank, without end.

    Position p of the order of samples belongs to step p // batch_size and to rank p % world_size. Iterating gives
    each worker's part of every step; `training_steps` puts the parts together.

    Args:
        shards: from `list_shards`.
        transform: sample and epoch to example; its randomness must come from (seed, epoch, key).
        batch_size: samples in a step, over all ranks.
        seed, lanes, shuffle_buffer: of the order, see `SampleOrder`.
        rank, world_size: this process among all; world_size divides batch_size.
        max_bad_fraction: stop above this share of unusable samples.
        start_step: steps that an earlier run did.
    """

    def __init__(
        self,
        shards: Sequence[str],
        transform: Transform,
        *,
        batch_size: int,
        seed: int,
        lanes: int = 16,
        shuffle_buffer: int = 1000,
        rank: int = 0,
        world_size: int = 1,
        max_bad_fraction: float = 0.01,
        start_step: int = 0,
    ) -> None:
        self.shards, self.transform = shards, transform
        self.batch_size, self.seed, self.lanes, self.shuffle_buffer = batch_size, seed, lanes, shuffle_buffer
        self.rank, self.world_size = rank, world_size
        self.max_bad_fraction, self.start_step = max_bad_fraction, start_step

    def __iter__(self) -> Iterator[Step | _Failure]:
        return _failing_softly(self._parts())

    def _parts(self) -> Iterator[Step]:
        info = get_worker_info()
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        index, readers = self.rank + self.world_size * worker, self.world_size * workers
        reader = _Reader(self.max_bad_fraction)
        start = self.start_step * self.batch_size

        def on_bad(record: BadRecord, position: int) -> None:
            # Several readers may read a lane: whose turn it is counts. Images are not decoded on the way to
            # `start`, so counting begins there.
            if position >= start and position % readers == index:
                reader.seen += 1
                reader.bad(record)
                reader.judge()

        order = SampleOrder(
            self.shards, seed=self.seed, lanes=self.lanes, shuffle_buffer=self.shuffle_buffer, on_bad=on_bad
        )
        for first in itertools.count(start, self.batch_size):
            examples = {}
            for position in range(first + (index - first) % readers, first + self.batch_size, readers):
                sample, epoch = order.take(position)
                reader.seen += 1
                try:
                    examples[position] = self.transform(sample, epoch)
                except BadSample as error:
                    reader.bad(BadRecord(sample.shard, sample.key, error.reason))
            reader.judge()
            yield Step(examples, reader.take())


def training_steps(stream: TrainingStream, workers: int) -> Generator[Step]:
    """The steps of a rank; `workers` processes read and decode (0: this process), until it is closed.

    Bad samples are logged.

    Raises:
        DataError: what stopped a worker.
    """
    with closing(_load(stream, workers)) as parts:
        while True:  # the loader asks its workers in turn
            step = [next(parts) for _ in range(max(1, workers))]
            examples = {position: example for part in step for position, example in part.examples.items()}
            yield Step(dict(sorted(examples.items())), tuple(record for part in step for record in part.bad))


class EvaluationStream(IterableDataset):
    """Each sample of the shards exactly once over all ranks and workers, in batches; the last may be smaller."""

    def __init__(
        self,
        shards: Sequence[str],
        transform: Transform,
        collate: Collate,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.shards, self.transform, self.collate = shards, transform, collate
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def __iter__(self) -> Iterator[StreamItem | _Failure]:
        return _failing_softly(self._items())

    def _items(self) -> Iterator[StreamItem]:
        info = get_worker_info()
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        reader = _Reader(max_bad_fraction=1.0)
        parts = reader_slice(self.shards, self.rank * workers + worker, self.world_size * workers)
        examples = []
        for sample in reader.samples(parts):
            try:
                examples.append(self.transform(sample, 0))
            except BadSample as error:
                reader.bad(BadRecord(sample.shard, sample.key, error.reason))
            if len(examples) == self.batch_size:
                yield StreamItem(self.collate(examples), reader.take())
                examples = []
        if examples or reader.fresh:
            yield StreamItem(self.collate(examples) if examples else None, reader.take())


class _Failure(NamedTuple):
    """A DataError on its way out of a worker; raised there, it would arrive with a traceback in its text."""

    sentence: str


def _failing_softly(items: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from items
    except DataError as error:
        yield _Failure(str(error))


def read_stream(stream: EvaluationStream, workers: int) -> Iterator[StreamItem]:
    """The items of a stream; `workers` processes read and decode (0: this process). Bad samples are logged.

    Raises:
        DataError: what stopped a worker.
    """
    return _load(stream, workers)


def _load(stream: IterableDataset, workers: int) -> Generator[Any]:
    loader = DataLoader(stream, batch_size=None, num_workers=workers, collate_fn=pack, worker_init_fn=_begin)
    try:
        for item in map(unpack, loader):
            if isinstance(item, _Failure):
                raise DataError(item.sentence)
            for record in item.bad:
                log(f"bad sample {record.key} in {record.shard}: {record.reason}")
            yield item
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"A process that reads samples died ({error}): is there memory enough? Lower data.workers."
        ) from error


def _begin(worker: int) -> None:
    """A signal to the whole group of processes is the main process's business; it ends its workers itself. Without it
    they end at once: torch's own look for their parent does not help one that waits to hand over what it has read.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
