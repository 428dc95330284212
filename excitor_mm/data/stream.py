"""Samples in order: an infinite training stream and an exact evaluation pass, for any ranks x workers.

Both are pure functions of their position. The training stream's batches depend on (seed, reader, epoch)
alone, never on whether an image decodes, so a resumed run finds its place by parsing samples without decoding
them: a sample whose image is bad gives its slot to a copy of another one in its batch.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from excitor_mm.console import log
from excitor_mm.data.samples import BadSample, Sample
from excitor_mm.data.shards import BadRecord, read_shard
from excitor_mm.errors import DataError

Transform = Callable[[Sample, int], Any]
"""(sample, epoch) -> example; may raise BadSample. Runs in the worker."""
Collate = Callable[[list[Any]], Any]
"""Examples -> batch."""
MIN_JUDGED = 100  # samples seen before the share of bad ones is judged
EMPTY_EPOCHS = 100  # epochs without a sample before a reader gives up


class StreamItem(NamedTuple):
    """What a loader yields."""

    batch: Any
    """Result of collate; None when a last piece of an evaluation pass held only bad samples."""
    bad: tuple[BadRecord, ...]
    """Found since the reader's last item."""


def stable_hash(*parts: object) -> int:
    """A 63-bit number that is the same in every process and Python version."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


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
        self.forget()

    def forget(self) -> None:
        """Begin counting anew."""
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
    """Full batches without end.

    Args:
        shards: from `list_shards`.
        transform: sample and epoch to example; its randomness must come from (seed, epoch, key).
        collate: list of examples to batch.
        batch_size: samples in a batch of this rank.
        seed: of the order of shards and samples.
        rank, world_size: this process among all.
        shuffle_buffer: undecoded samples held for shuffling.
        max_bad_fraction: stop above this share of unusable samples.
        start_batch: batches of this rank that an earlier run consumed.
    """

    def __init__(
        self,
        shards: Sequence[str],
        transform: Transform,
        collate: Collate,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle_buffer: int = 1000,
        max_bad_fraction: float = 0.01,
        start_batch: int = 0,
    ) -> None:
        self.shards, self.transform, self.collate = shards, transform, collate
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.shuffle_buffer, self.max_bad_fraction = shuffle_buffer, max_bad_fraction
        self.start_batch = start_batch

    def __iter__(self) -> Iterator[StreamItem | _Failure]:
        return _failing_softly(self._items())

    def _items(self) -> Iterator[StreamItem]:
        info = get_worker_info()
        workers, process = (info.num_workers, info.id) if info else (1, 0)
        # The loader asks its processes in turn, beginning with process 0 after a resume too, so the one
        # that is asked first must go on as the worker whose batch is next.
        worker = (process + self.start_batch) % workers
        skip = (self.start_batch - worker + workers - 1) // workers
        reader = _Reader(self.max_bad_fraction)
        ordered = self._ordered(reader, self.rank * workers + worker, self.world_size * workers)
        while True:
            samples = [next(ordered) for _ in range(self.batch_size)]
            if skip:
                skip -= 1
                reader.forget()  # images are not decoded on the way: counting begins where the run goes on
                continue
            batch = self.collate(self._examples(samples, reader))
            reader.judge()
            yield StreamItem(batch, reader.take())

    def _examples(self, samples: list[tuple[Sample, int]], reader: _Reader) -> list[Any]:
        examples = []
        for sample, epoch in samples:
            try:
                examples.append(self.transform(sample, epoch))
            except BadSample as error:
                reader.bad(BadRecord(sample.shard, sample.key, error.reason))
        if not examples:
            reader.judge(final=True)
            raise DataError(f"None of {len(samples)} samples in a batch can be used: run `excitor-mm shards check`.")
        return [examples[i % len(examples)] for i in range(self.batch_size)]

    def _ordered(self, reader: _Reader, index: int, readers: int) -> Iterator[tuple[Sample, int]]:
        """(sample, epoch) for ever; each epoch of this reader gives each of its samples once."""
        epoch, empty = 0, 0
        while True:
            shards = list(self.shards)
            random.Random(stable_hash(self.seed, epoch, "shards")).shuffle(shards)
            chooser = random.Random(stable_hash(self.seed, epoch, index, readers))
            held: list[Sample] = []
            empty += 1
            for sample in reader.samples(reader_slice(shards, (index + epoch) % readers, readers)):
                empty = 0
                held.append(sample)
                if len(held) > self.shuffle_buffer:
                    yield _pop(held, chooser), epoch
            while held:
                yield _pop(held, chooser), epoch
            # Where readers share a small shard, one may get nothing in an epoch; the next deals anew.
            if empty == EMPTY_EPOCHS:
                reader.judge(final=True)
                raise DataError(f"{len(shards)} shard(s) hold no usable sample: run `excitor-mm shards check`.")
            epoch += 1


def _pop(held: list[Sample], chooser: random.Random) -> Sample:
    """A random sample, in constant time."""
    index = chooser.randrange(len(held))
    held[index], held[-1] = held[-1], held[index]
    return held.pop()


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


def _failing_softly(items: Iterator[StreamItem]) -> Iterator[StreamItem | _Failure]:
    try:
        yield from items
    except DataError as error:
        yield _Failure(str(error))


def read_stream(stream: TrainingStream | EvaluationStream, workers: int) -> Iterator[StreamItem]:
    """The items of a stream; `workers` processes read and decode (0: this process). Bad samples are logged.

    Raises:
        DataError: what stopped a worker.
    """
    for item in DataLoader(stream, batch_size=None, num_workers=workers):
        if isinstance(item, _Failure):
            raise DataError(item.sentence)
        for record in item.bad:
            log(f"bad sample {record.key} in {record.shard}: {record.reason}")
        yield item
