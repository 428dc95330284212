"""growth: what one image costs as image tokens, batch, text and Excitor layers grow; with a picture."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from excitor_mm.files import read_json
from excitor_mm.model import ExcitorModel
from suites.generation import seconds
from suites.measure import Comparison
from suites.models import load_other, load_ours, random_tokens, text

GRID: dict[str, tuple[int, ...]] = {
    "image tokens": (64, 257, 577, 1024),
    "batch": (1, 4, 16, 32),
    "prompt tokens": (8, 50, 128, 256),
    "excitor layers": (1, 7, 14, 28),
}
SIZES = {"image tokens": 257, "batch": 8, "prompt tokens": 50}


def growth(options: Namespace) -> list[Comparison]:
    """One size grows, the others stay; each point is prefill and decoding, divided by the batch."""
    ours = load_ours(options.adapter, options.dtype)
    models = {"excitor": ours, "llava": load_other("llava", ours, options.dtype)}
    models["bare"] = load_other("bare", ours, options.dtype)
    comparisons = []
    for what, values in GRID.items():
        for value in values:
            sizes = {**SIZES, what: value}
            words = text(ours, sizes["batch"], sizes["prompt tokens"])
            tokens = random_tokens(ours, sizes["batch"], sizes["image tokens"])
            layers = sizes.get("excitor layers")

            sides = {
                name: partial(_cost, model, words, tokens, options.new_tokens, layers)
                for name, model in models.items()
                if layers is None or name != "llava"
            }
            comparisons.append(Comparison(f"growth of {what}", sides, sizes["batch"], "image", facts=sizes))
    return comparisons


def _cost(model: ExcitorModel, words: dict[str, Tensor], tokens: list[Tensor], new: int, layers: int | None) -> float:
    with _topmost(model, layers):
        return seconds(model, words, tokens, new)


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
    """One panel for each size that grows: `growth.json` to a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from statistics import median

    from matplotlib import pyplot

    rows = read_json(results)["comparisons"]
    figure, panels = pyplot.subplots(1, len(GRID), figsize=(14, 3.4))
    for panel, what in zip(panels, GRID, strict=True):
        points = [row for row in rows if row["title"] == f"growth of {what}"]
        for name in points[0]["costs"]:
            xs = [row["facts"][what] for row in points]
            panel.plot(xs, [median(row["costs"][name]) * 1e3 for row in points], marker="o", label=name)
        panel.set(xlabel=what, ylim=(0, None))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("ms an image")
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=90)
