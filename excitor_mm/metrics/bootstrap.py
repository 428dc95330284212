"""Confidence intervals by resampling images: how much a score hangs on which images happened to be scored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVEL = 95  # per cent


class Bootstrap:
    """Resamplings of N images with replacement: the same ones for every metric and every file, so that two
    prediction files can be compared draw by draw.

    Args:
        images: N.
        draws: number of resamplings.
        seed: of the draws.
    """

    def __init__(self, images: int, draws: int = 1000, seed: int = 0) -> None:
        self.images, self.draws, self.seed = images, draws, seed

    def sums(self, statistics: Floats) -> Floats:
        """float[N, S], statistics that add up over images -> float[draws, S], their sums in each resampling."""
        chooser = np.random.default_rng(self.seed)
        sums = np.empty((self.draws, statistics.shape[1]))
        for row in sums:
            chosen = chooser.integers(self.images, size=self.images)
            row[:] = np.bincount(chosen, minlength=self.images) @ statistics
        return sums

    def scores(self, statistics: Floats, score: Callable[[Floats], float]) -> Floats:
        """float[draws]: `score`, a function of summed statistics float[S], in each resampling."""
        return np.array([score(row) for row in self.sums(statistics)])

    def means(self, values: Floats) -> Floats:
        """float[N] -> float[draws], the mean of a score for each image in each resampling."""
        return self.sums(values[:, None])[:, 0] / self.images


def interval(draws: Floats) -> list[float]:
    """The percentile interval at `LEVEL` per cent: low, high."""
    return np.percentile(draws, [(100 - LEVEL) / 2, (100 + LEVEL) / 2]).tolist()
