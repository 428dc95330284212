"""Train the same configurations with several numbers of processes and compare the adapters.

    python -m tests.trust.ranks

With --ranks and --configs it forks one process for each rank, with the variables that torchrun would set; each trains
the configurations one after another, and writes the sentence of one that fails into `error-<rank>.txt` of its folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import load_file

from excitor_mm.adapter import TENSORS
from excitor_mm.config import RunConfig, from_dict
from excitor_mm.errors import ExcitorError
from excitor_mm.train import train
from tests.conftest import make_shards, tiny_run, write_encoder, write_language

ROOT = Path(__file__).parents[2]
SHARDS = {1: [29], 3: [17, 2, 10], 7: [9, 1, 6, 2, 5, 2, 4]}
"""Number of shards -> samples in each, uneven."""


def change(config: RunConfig, output: Path, **settings: object) -> RunConfig:
    """The same run into another folder, with other settings of `train`."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, output=str(output), **settings))


def run_ranks(ranks: int, configs: list[RunConfig], scratch: Path) -> None:
    """Train all configurations in `ranks` gloo processes; those with a checkpoint are resumed."""
    path = scratch / f"configs-{ranks}.json"
    path.write_text(json.dumps([dataclasses.asdict(config) for config in configs]))
    command = [sys.executable, "-m", "tests.trust.ranks", "--ranks", str(ranks), "--configs", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=560, env=environment, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(done.stderr[:6000])


def fork_ranks(ranks: int, configs: list[RunConfig]) -> bool:
    """Train in as many processes; True when all ended well."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes = []
    for rank in range(ranks):
        processes.append(os.fork())
        if processes[-1]:
            continue
        status = 1
        try:
            address = {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "WORLD_SIZE": ranks,
                "LOCAL_WORLD_SIZE": ranks,
            }
            if ranks > 1:
                os.environ.update({k: str(v) for k, v in {**address, "RANK": rank, "LOCAL_RANK": rank}.items()})
            PartialState.destroy_process_group = lambda *_: None  # one group for all trainings
            for config in configs:
                output = Path(config.train.output)
                try:
                    train(config, resume=any(output.glob("checkpoints/step-*")))
                except ExcitorError as error:
                    (output / f"error-{rank}.txt").write_text(str(error))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    statuses = [os.waitpid(process, 0)[1] for process in processes]
    return not any(statuses)


def difference(one: Path, other: Path) -> float:
    """Largest absolute difference of two runs' best adapters; 0.0 means bit-equal."""
    left, right = load_file(one / "best" / TENSORS), load_file(other / "best" / TENSORS)
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)


def main() -> None:
    """Print a table: shards x ranks, differences from one process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        language, encoder = write_language(folder / "language"), write_encoder(folder / "encoder.safetensors")
        base = {
            shards: tiny_run(language, encoder, make_shards(folder / f"shards-{shards}", counts), folder / "unused")
            for shards, counts in SHARDS.items()
        }
        alone = [
            change(config, folder / f"{shards}-1x{passes}", accumulation=passes, steps=20)
            for shards, config in base.items()
            for passes in (1, 2, 4)
        ]
        run_ranks(1, alone, folder)
        for ranks in (2, 4):
            plain = [change(config, folder / f"{shards}-{ranks}", steps=20) for shards, config in base.items()]
            divided = [
                change(config, folder / f"{shards}-{ranks}-fsdp2", steps=20, shard_frozen=True)
                for shards, config in base.items()
            ]
            run_ranks(ranks, plain + divided, folder)
        print("| shards | ranks | frozen layers | from 1 rank, 1 pass | from 1 rank, as many passes |")
        print("|---|---|---|---|---|")
        for shards in base:
            for ranks in (2, 4):
                for kind, suffix in (("whole", ""), ("FSDP2", "-fsdp2")):
                    run = folder / f"{shards}-{ranks}{suffix}"
                    figures = (difference(run, folder / f"{shards}-1x{passes}") for passes in (1, ranks))
                    print(f"| {shards} | {ranks} | {kind} | " + " | ".join(f"{f:.1e}" for f in figures) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", type=Path, help="JSON list of configurations, of one rank")
    parser.add_argument("--ranks", type=int, default=1)
    options = parser.parse_args()
    if options.configs is None:
        main()
    else:
        rows = json.loads(options.configs.read_text())
        sys.exit(not fork_ranks(options.ranks, [from_dict(RunConfig, values) for values in rows]))
