"""The runs of a study: which there are, which rate each row keeps, and what is equal in all of them.

In: rows (see `Row`), seeds, and what is tested on. Out: one finished run for each rate with the first seed, and one
for each further seed at the best rate; see run.py for what a run is, table.py for what is made of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from excitor_mm.config import RunConfig
from excitor_mm.console import log
from studies.run import Run, finished, in_a_process

EXCITOR = "excitor"


METHODS: Mapping[str, str | None] = {
    EXCITOR: None,
    "llama-adapter": "llama-adapter",
    "lora-prefix": "llava-lora",
    "clipcap": "clipcap",
    "llava": "llava",
}
"""Ways to show a picture to the frozen language model, by their names in `baselines.NAMES`; None: Excitor."""
RATES = (2e-3, 4e-3, 8e-3)
"""Learning rates that every row tries; the table says where the best one is at an edge."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    """Of its folder, too."""
    baseline: str | None
    """See `Method`."""
    size: int | None
    """Of the baseline, see `build_baseline`."""
    config: RunConfig
    """All but rate, seed and output."""
    rates: Sequence[float]
    """Tried with the first seed."""


class Outcome(NamedTuple):
    """What became of a row."""

    row: Row
    rate: float
    """The best one."""
    grid: Mapping[float, float]
    """Rate -> validation score with the first seed."""
    results: Sequence[Mapping[str, Any]]
    """result.json of each seed at the best rate, the first seed first."""
    others: Sequence[Mapping[str, Any]]
    """result.json of the other rates."""


def carry_out(
    row: Row, output: Path, seeds: int, *, test: str, text: Path, start: Callable[[Run], None] = in_a_process
) -> Outcome:
    """All runs of a row that are not finished yet, one after the other.

    Args:
        row: of the table.
        output: folder of the study.
        seeds: their number; they count from the configuration's.
        test: shards that are captioned and scored.
        text: file whose perplexity is taken.
        start: carries out a run.

    Raises:
        ConfigError: a folder holds a run of other settings.
    """

    def result(rate: float, number: int) -> Mapping[str, Any]:
        seed = row.config.train.seed + number
        folder = output / row.name / f"{rate:g}" / str(seed)
        run = Run(folder, row.baseline, row.size, _at(row.config, rate, seed, folder), test, text)
        if finished(run) is None:
            log(f"study: {row.name}, rate {rate:g}, seed {seed}")
            start(run)
        found = finished(run)
        assert found is not None  # `start` raises where it does not finish
        return found

    tried = {rate: result(rate, 0) for rate in row.rates}
    grid = {rate: found["validation"] for rate, found in tried.items()}
    best = max(grid, key=grid.__getitem__)
    log(f"study: {row.name} keeps rate {best:g}, validation {grid[best]:.1f}")
    results = [tried.pop(best), *(result(best, number) for number in range(1, seeds))]
    return Outcome(row, best, grid, results, list(tried.values()))


def _at(config: RunConfig, rate: float, seed: int, folder: Path) -> RunConfig:
    """The configuration of one run. The gates' rate stays; every step is logged for the median of its seconds."""
    settings = config.train
    train = dataclasses.replace(
        settings,
        output=str(folder / "training"),
        learning_rate=rate,
        gate_learning_rate=settings.gate_learning_rate or settings.learning_rate,
        seed=seed,
        log_every=1,
    )
    return dataclasses.replace(config, train=train)
