"""Kill a training run again and again, resume it each time, and compare its adapter with an uninterrupted run's.

    python -m tests.trust.kill --kills 50

Each attempt is a process of its own, forked from this one (which has only imported the libraries), and is ended by
SIGKILL at a random moment: while it loads, trains or writes a checkpoint. Every attempt has another number of
reading processes. When a run reaches its end its adapter must be bit-equal; then the next run begins, until
there were enough kills.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from excitor_mm.adapter import TENSORS
from excitor_mm.config import RunConfig
from excitor_mm.train import train
from tests.conftest import make_shards, tiny_run, write_encoder, write_language


def start(config: RunConfig, workers: int) -> int:
    """Fork a process that trains, or resumes where there is a checkpoint; its process id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=workers))
        begun = any((Path(config.train.output) / "checkpoints").glob("step-*"))
        train(config, resume=begun, overwrite=not begun)
        status = 0
    finally:
        os._exit(status)


def run_with_kills(config: RunConfig, chooser: random.Random, longest: float) -> tuple[int, int, int]:
    """Train to the end; kills in all, while a run had checkpoints, and inside the writing of a folder."""
    kills = resumed = inside = 0
    output = Path(config.train.output)
    while True:
        process = start(config, workers=chooser.randrange(3))
        moment, begun = time.monotonic() + chooser.random() * longest, time.monotonic()
        while time.monotonic() < moment:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                if status:
                    raise SystemExit(
                        f"an attempt failed with wait status {status} after {time.monotonic() - begun:.1f} s"
                    )
                return kills, resumed, inside
            time.sleep(0.001)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        kills += 1
        resumed += any((output / "checkpoints").glob("step-*"))
        inside += bool([*output.glob(".*-*"), *output.glob("checkpoints/.*")])


def main(kills: int, seed: int) -> None:
    """Print one line for each run, and the sums."""
    torch.set_num_threads(1)
    chooser = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        language, encoder = write_language(folder / "language"), write_encoder(folder / "encoder.safetensors")
        config = tiny_run(language, encoder, make_shards(folder / "shards", [11, 4, 7]), folder / "whole")
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=40, save_every=1))
        begun = time.monotonic()
        assert os.waitpid(start(config, workers=0), 0)[1] == 0
        alone = time.monotonic() - begun
        expected = load_file(folder / "whole" / "best" / TENSORS)
        total = [0, 0, 0]
        while total[0] < kills:
            output = folder / f"run-{total[0]}"
            cut = dataclasses.replace(config, train=dataclasses.replace(config.train, output=str(output)))
            counts = run_with_kills(cut, chooser, longest=alone)
            total = [a + b for a, b in zip(total, counts, strict=True)]
            found = load_file(output / "best" / TENSORS)
            equal = found.keys() == expected.keys() and all(torch.equal(found[n], t) for n, t in expected.items())
            print(f"run of 40 steps ended after {counts[0]} kills; bit-equal: {equal}", flush=True)
            if not equal:
                raise SystemExit("the adapter differs from the uninterrupted run's")
    print(
        f"{total[0]} kills, {total[1]} with a checkpoint to resume from, {total[2]} while a folder was being written"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    main(options.kills, options.seed)
    sys.exit(0)
