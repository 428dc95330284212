"""The shard doctor: what is good and bad in shards, and how training would share them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from excitor_mm.console import Progress
from excitor_mm.data.images import load_image
from excitor_mm.data.index import INDEX, file_sha256, read_index
from excitor_mm.data.order import lanes_of
from excitor_mm.data.samples import BadSample
from excitor_mm.data.shards import BadRecord, list_shards, read_shard


@dataclass(frozen=True)
class CheckedShard:
    """One shard: good samples, and bad ones by reason."""

    name: str
    good: int
    bad: dict[str, int]
    matches_index: bool | None
    """sha256 and count equal the index; None without an index."""


@dataclass(frozen=True)
class Plan:
    """How training would share the shards among its readers."""

    steps_per_epoch: float
    lanes: int
    """Shards open at a time, over all readers."""
    lanes_per_reader: int
    """Of the reader that opens most; a reader is one worker of one rank."""
    times_read: float
    """How many readers read a shard, on average. 1 is best; above it readers parse what others decode."""


@dataclass(frozen=True)
class ShardCheck:
    """All shards, and the plan."""

    shards: list[CheckedShard]
    plan: Plan
    """How training would read them."""

    @property
    def ok(self) -> bool:
        """Nothing bad, and everything as the index says."""
        return all(not shard.bad and shard.matches_index is not False for shard in self.shards)


def check_shards(spec: str, *, ranks: int = 1, workers: int = 1, batch_size: int = 1, lanes: int = 16) -> ShardCheck:
    """Read every sample and decode every image.

    Args:
        spec: see `list_shards`.
        ranks, workers: of the planned training; workers are per rank.
        batch_size: images a step, over all ranks.
        lanes: see `SampleOrder`.
    """
    paths = list_shards(spec)
    indexed = {}
    if (Path(spec) / INDEX).is_file():
        indexed = {entry.name: entry for entry in read_index(Path(spec)).shards}
    checked = []
    seen: set[int | str] = set()
    with Progress("checking", len(paths), "shards") as bar:
        for path in paths:
            records: list[BadRecord] = []
            good = 0
            for sample in read_shard(path, records.append):
                try:
                    if sample.image is not None:
                        load_image(sample.image)
                    if sample.image_id in seen:
                        raise BadSample("duplicate image", f"{sample.shard}: image {sample.image_id} came before.")
                    seen.add(sample.image_id)
                    good += 1
                except BadSample as error:
                    records.append(BadRecord(sample.shard, sample.key, error.reason))
            bad = dict(Counter(record.reason for record in records))
            entry = indexed.get(Path(path).name)
            matches = None
            if entry is not None:
                matches = entry.samples == good and entry.sha256 == file_sha256(Path(path))
            checked.append(CheckedShard(Path(path).name, good, bad, matches))
            bar.advance()
    samples = sum(shard.good for shard in checked)
    return ShardCheck(checked, plan_reading(len(paths), samples, ranks * max(1, workers), batch_size, lanes))


def plan_reading(shards: int, samples: int, readers: int, batch_size: int, lanes: int) -> Plan:
    """Who reads how much; see `SampleOrder`."""
    lanes = min(lanes, shards)
    opened = [len(lanes_of(reader, readers, lanes)) for reader in range(readers)]
    return Plan(round(samples / batch_size, 2), lanes, max(opened), sum(opened) / lanes)


def format_plan(plan: Plan) -> str:
    """A sentence or two for the terminal."""
    text = f"{plan.lanes} lanes, {plan.lanes_per_reader} in a reader; each shard has {plan.times_read:g} readers"
    better = " (fewer: more shards, and data.lanes a multiple of ranks x workers)"
    return text + (better if plan.times_read > 1 else "")


def format_check(check: ShardCheck) -> str:
    """A table for the terminal."""
    words = {True: "as indexed", False: "NOT AS INDEXED", None: "no index"}
    lines = []
    for shard in check.shards:
        bad = ", ".join(f"{count} {reason}" for reason, count in sorted(shard.bad.items())) or "none"
        lines.append(f"{shard.name}: {shard.good} good, bad: {bad}; {words[shard.matches_index]}")
    lines.append(f"{sum(shard.good for shard in check.shards)} good samples in {len(check.shards)} shards")
    lines.append(f"{check.plan.steps_per_epoch:g} steps an epoch; {format_plan(check.plan)}")
    lines.append("Each rank gets the same number of samples, and none ever waits for another's shards.")
    return "\n".join(lines)
