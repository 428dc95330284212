"""The endless order in which training visits the samples of its shards: the same for any number of readers.

The shards of epoch 0, of epoch 1 and so on, each epoch in a random order of its own, form one sequence. It is cut
into L *lanes*: lane l reads the shards l, l + L, l + 2L, ... of the sequence, one after another, through a shuffle
buffer of its own, and fills the positions l, l + L, l + 2L, ... of the order. What stands at a position is a
function of (shards, seed, lanes, shuffle buffer) alone. A reader takes the positions that fall to it and opens
only the lanes they lie in.

Lanes whose shards are smaller come to the next epoch a little sooner. No lane ever waits for another, so uneven
shards cannot stop a run; each epoch of a lane gives each of its samples once.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence

from excitor_mm.data.samples import Sample
from excitor_mm.data.shards import BadRecord, read_shard
from excitor_mm.errors import DataError

EMPTY_VISITS = 100  # shards in a row without a sample before a lane gives up


def stable_hash(*parts: object) -> int:
    """A 63-bit number that is the same in every process and Python version."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


class SampleOrder:
    """Samples by position; within a lane, positions must be asked for in rising order.

    Args:
        shards: from `list_shards`.
        seed: of the order of shards and samples.
        lanes: L; never more than there are shards.
        shuffle_buffer: undecoded samples held for shuffling, over all lanes.
        on_bad: called with everything that cannot be read, and the position that the next sample will take.
    """

    def __init__(
        self,
        shards: Sequence[str],
        *,
        seed: int,
        lanes: int,
        shuffle_buffer: int,
        on_bad: Callable[[BadRecord, int], None],
    ) -> None:
        self.shards, self.seed, self.on_bad = shards, seed, on_bad
        self.lanes = min(lanes, len(shards))
        self.held = shuffle_buffer // self.lanes
        self._open: dict[int, Iterator[tuple[int, Sample, int]]] = {}

    def take(self, position: int) -> tuple[Sample, int]:
        """The sample at a position and its epoch; what lies before in its lane is parsed and dropped.

        Raises:
            DataError: the lane finds no sample, or a shard cannot be opened.
        """
        lane = position % self.lanes
        samples = self._open.setdefault(lane, self._lane(lane))
        return next((sample, epoch) for found, sample, epoch in samples if found == position)

    def _lane(self, lane: int) -> Iterator[tuple[int, Sample, int]]:
        """(position, sample, epoch) for ever."""
        position = lane

        def on_bad(record: BadRecord) -> None:
            self.on_bad(record, position)

        for sample, epoch in self._shuffled(lane, on_bad):
            yield position, sample, epoch
            position += self.lanes

    def _shuffled(self, lane: int, on_bad: Callable[[BadRecord], None]) -> Iterator[tuple[Sample, int]]:
        chooser = random.Random(stable_hash(self.seed, lane, self.lanes))
        held: list[Sample] = []
        epoch, shards, empty = -1, list(self.shards), 0
        for visit in itertools.count(lane, self.lanes):
            if visit // len(shards) != epoch:
                while held:
                    yield _pop(held, chooser), epoch
                epoch, shards = visit // len(shards), list(self.shards)
                random.Random(stable_hash(self.seed, epoch, "shards")).shuffle(shards)
            empty += 1
            for sample in read_shard(shards[visit % len(shards)], on_bad):
                empty = 0
                held.append(sample)
                if len(held) > self.held:
                    yield _pop(held, chooser), epoch
            if empty >= EMPTY_VISITS:
                raise DataError(f"{len(shards)} shard(s) hold no usable sample: run `excitor-mm shards check`.")


def _pop(held: list[Sample], chooser: random.Random) -> Sample:
    """A random sample, in constant time."""
    index = chooser.randrange(len(held))
    held[index], held[-1] = held[-1], held[index]
    return held.pop()


def lanes_of(reader: int, readers: int, lanes: int) -> set[int]:
    """The lanes that one of several readers opens: those that share a position with it."""
    return {position % lanes for position in range(reader, readers * lanes, readers)}
