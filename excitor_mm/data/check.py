"""The shard doctor: what is good and bad in shards, and how training would share them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from excitor_mm.console import Progress
from excitor_mm.data.images import load_image
from excitor_mm.data.index import INDEX, file_sha256, read_index
from excitor_mm.data.samples import BadSample
from excitor_mm.data.shards import BadRecord, list_shards, read_shard
from excitor_mm.data.stream import reader_slice


@dataclass(frozen=True)
class CheckedShard:
    """One shard: good samples, and bad ones by reason."""

    name: str
    good: int
    bad: dict[str, int]
    matches_index: bool | None
    """sha256 and count equal the index; None without an index."""


@dataclass(frozen=True)
class ShardCheck:
    """All shards, and the plan."""

    shards: list[CheckedShard]
    plan: dict[str, float] = field(default_factory=dict)
    """"rank r worker w" -> batches in one pass over its samples."""

    @property
    def ok(self) -> bool:
        """Nothing bad, and everything as the index says."""
        return all(not shard.bad and shard.matches_index is not False for shard in self.shards)


def check_shards(spec: str, *, ranks: int = 1, workers: int = 1, batch_size: int = 1) -> ShardCheck:
    """Read every sample and decode every image.

    Args:
        spec: see `list_shards`.
        ranks, workers: of the planned training; workers are per rank.
        batch_size: images a step and rank.
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
    sizes = {path: shard.good for path, shard in zip(paths, checked, strict=True)}
    plan = {}
    workers = max(1, workers)  # none: each rank reads for itself
    for reader in range(ranks * workers):
        rank, worker = divmod(reader, workers)
        samples = sum(
            len(range(first, sizes[shard], step))
            for shard, first, step in reader_slice(paths, reader, ranks * workers)
        )
        plan[f"rank {rank} worker {worker}"] = round(samples / batch_size, 2)
    return ShardCheck(checked, plan)


def format_check(check: ShardCheck) -> str:
    """A table for the terminal."""
    words = {True: "as indexed", False: "NOT AS INDEXED", None: "no index"}
    lines = []
    for shard in check.shards:
        bad = ", ".join(f"{count} {reason}" for reason, count in sorted(shard.bad.items())) or "none"
        lines.append(f"{shard.name}: {shard.good} good, bad: {bad}; {words[shard.matches_index]}")
    lines.append(f"{sum(shard.good for shard in check.shards)} good samples in {len(check.shards)} shards")
    lines += [f"{reader}: {batches} batches a pass" for reader, batches in check.plan.items()]
    lines.append("Training streams go round for ever: readers with fewer batches repeat sooner, none waits.")
    return "\n".join(lines)
