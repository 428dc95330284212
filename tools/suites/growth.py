"""growth: time and memory as images, image tokens, batch, text and Excitor layers grow; with a picture."""

from __future__ import annotations

import multiprocessing
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import cache, partial
from io import StringIO
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

from excitor_mm.files import read_json
from excitor_mm.generate import caption_pictures
from excitor_mm.model import ExcitorModel
from excitor_mm.pictures import find_pictures
from suites.generation import seconds
from suites.measure import Comparison, Side
from suites.memory import load_side, peak, restart_peak
from suites.models import random_tokens, text

GRID: dict[str, tuple[int, ...]] = {
    "images": (8, 32, 128),
    "image tokens": (64, 257, 577, 1024),
    "batch": (1, 4, 16, 32),
    "prompt tokens": (8, 50, 128, 256),
    "excitor layers": (1, 7, 14, 28),
}
SIZES = {"image tokens": 257, "batch": 8, "prompt tokens": 50}
SIDES = {"images": ("excitor",), "excitor layers": ("excitor", "bare")}
"""Where not all three take part: llava has no Excitor layers, and our own command captions pictures."""
ALL = ("excitor", "llava", "bare")


def growth(options: Namespace) -> list[Comparison]:
    """One size grows, the others stay. Time is a whole generation divided by its images; memory is what a fresh
    process needs above the weights, which is asked once, because it hardly varies.
    """
    models = {name: load_side(options, name) for name in ALL}
    peaks_of = cache(partial(_peaks, options))
    times, peaks = [], []
    for what, values in GRID.items():
        for place, value in enumerate(values):
            sizes = {**SIZES, what: value}
            names = SIDES.get(what, ALL)
            work = value if what == "images" else sizes["batch"]
            sides: dict[str, Side] = {name: partial(_cost, models[name], options, sizes) for name in names}
            times.append(Comparison(f"time, {what}", sides, work, "image", facts=sizes))
            memory: dict[str, Side] = {name: partial(_peak_at, peaks_of, name, what, place) for name in names}
            peaks.append(Comparison(f"memory, {what}", memory, 1, "process", "MiB", sizes, warm_up=False))
    return times + peaks


def _cost(model: ExcitorModel, options: Namespace, sizes: Mapping[str, int]) -> float | None:
    """Seconds of one generation; None: all of the call's time."""
    if "images" in sizes:
        pictures = list(find_pictures([options.images], StringIO()).pictures(lambda *_: None))
        for _ in caption_pictures(model, islice(cycle(pictures), sizes["images"]), batch_size=sizes["batch"]):
            pass
        return None
    words = text(model, sizes["batch"], sizes["prompt tokens"])
    tokens = random_tokens(model, sizes["batch"], sizes["image tokens"])
    with _topmost(model, sizes.get("excitor layers")):
        return seconds(model, words, tokens, options.new_tokens)


def _peak_at(peaks_of: Callable[[str, str], list[float]], name: str, what: str, place: int) -> float:
    """Bytes above the weights at one point of a curve."""
    return peaks_of(name, what)[place]


def _peaks(options: Namespace, name: str, what: str) -> list[float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_curve, (options, name, what))


def _curve(options: Namespace, name: str, what: str) -> list[float]:
    """In a fresh process: sizes grow, so the peak after each is its own."""
    model = load_side(options, name)
    held, found = restart_peak(), []
    for value in GRID[what]:
        _cost(model, options, {**SIZES, what: value})
        found.append(peak() - held)
    return found


class _topmost:
    """Only the topmost excited layers keep their blocks inside the `with`."""

    def __init__(self, model: ExcitorModel, layers: int | None) -> None:
        found = list(model.language.excitors())
        self.layers = [model.language.model.layers[i] for i in (found[:-layers] if layers else [])]

    def __enter__(self) -> None:
        self.taken = [layer.self_attn.k_proj for layer in self.layers]
        for layer, projection in zip(self.layers, self.taken, strict=True):
            layer.self_attn.k_proj = projection.base

    def __exit__(self, *_: Any) -> None:
        for layer, projection in zip(self.layers, self.taken, strict=True):
            layer.self_attn.k_proj = projection


def draw(results: Path, picture: Path) -> None:
    """Time above, memory below, one column for each size that grows: `growth.json` to a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = read_json(results)["comparisons"]
    figure, panels = pyplot.subplots(2, len(GRID), figsize=(16, 6), sharex="col")
    for line, (kind, unit, scale) in enumerate((("time", "ms an image", 1e3), ("memory", "MiB", 2**-20))):
        for panel, what in zip(panels[line], GRID, strict=True):
            points = [row for row in rows if row["title"] == f"{kind}, {what}"]
            xs, highest = [row["facts"][what] for row in points], 0.0
            for colour, name in enumerate(ALL):
                if name in points[0]["costs"]:
                    ys = [median(row["costs"][name]) * scale for row in points]
                    panel.plot(xs, ys, marker="o", label=name, color=f"C{colour}")
                    highest = max(highest, *ys)
            panel.set_ylim(0, 1.1 * highest)
            panel.grid(alpha=0.3)
            if line:
                panel.set_xlabel(what)
        panels[line][0].set_ylabel(unit)
    panels[0][1].legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=80)
