"""Stream synthetic samples through the training reader: memory over time, and how far the shuffle moves them.

    python -m tests.trust.stream --samples 1000000

The reader is the one of a training with workers: 0: parse, shuffle, decode, draw; only the model is missing.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from array import array
from collections import Counter
from pathlib import Path

from excitor_mm.data.images import load_image
from excitor_mm.data.index import write_shard
from excitor_mm.data.samples import Sample
from excitor_mm.data.stream import TrainingStream, training_steps
from tests.conftest import COLOURS, jpeg

BATCH = 100
PICTURES = [jpeg(colour, (16, 16)) for colour in COLOURS]


def decode(sample: Sample, epoch: int) -> int:
    """What a model would need, thrown away; the number of the sample is kept."""
    load_image(sample.image or b"").tobytes()
    return int(sample.image_id)


def resident() -> float:
    """MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main(count: int, shards: int, lanes: int, shuffle_buffer: int) -> int:
    """Print the figures; 0 when memory is flat and the shuffle shuffles."""
    each = count // shards
    with tempfile.TemporaryDirectory() as name:
        paths = []
        for shard in range(shards):
            numbers = range(shard * each, (shard + 1) * each)
            samples = (Sample(f"{i:09d}", i, PICTURES[i % len(PICTURES)], (f"Picture {i}.",)) for i in numbers)
            paths.append(str(Path(name) / f"{shard:06d}.tar"))
            write_shard(Path(paths[-1]), samples)
        stream = TrainingStream(paths, decode, batch_size=BATCH, seed=0, lanes=lanes, shuffle_buffer=shuffle_buffer)
        steps = training_steps(stream, workers=0)
        order = array("I", bytes(4 * count))  # at its full size from the start
        memory: list[float] = []
        started = time.process_time()
        for number in range(count // BATCH):
            for position, found in next(steps).examples.items():
                order[position] = found
            if number % max(1, count // BATCH // 100) == 0:
                memory.append(resident())
        seconds = time.process_time() - started
    later = memory[len(memory) // 10 :]
    grown = max(later) / later[0] - 1
    moved = sum(abs(place - i) for place, i in enumerate(order)) / count**2
    neighbours = sum(a // each == b // each for a, b in zip(order, order[1:], strict=False)) / count
    ranks: Counter[int] = Counter()
    inside = 0
    for i in order:
        inside += abs(ranks[i // each] % each - i % each)
        ranks[i // each] += 1
    times = Counter(Counter(order).values())
    print(
        f"{len(order):,} samples of {shards} shards in {seconds:.0f} s of processor time, {len(order) / seconds:,.0f}/s"
    )
    print(f"memory {later[0]:.0f} MiB after 10 %, at most {max(later):.0f} MiB after that: {100 * grown:+.1f} %")
    print(f"mean displacement in the epoch: {moved:.3f} of its length (a perfect shuffle: 0.333)")
    print(f"mean displacement inside a shard: {inside / count:.0f} of {each} samples")
    print(f"neighbours of one shard: {100 * neighbours:.1f} %")
    print(f"samples seen n times: {dict(sorted(times.items()))}, never: {count - sum(times.values())}")
    return int(grown > 0.05 or not 0.2 < moved < 0.45)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--shuffle-buffer", type=int, default=1000)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(options.samples, options.shards, options.lanes, options.shuffle_buffer))
