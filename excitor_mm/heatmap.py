"""From visual tokens back to the photo: maps in its coordinates, and a picture of them.

In: a weight for each visual token. Out: weights for each place of the photo, exact to the cell: the encoder's
resize and centre crop are undone, tokens of the whole picture have no place and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from excitor_mm.vision.tower import VisionTower

SIDE = 224
"""Shorter side of a map; more than any encoder has cells."""
LINE = 24
"""Height of the text under a panel, in pixels."""


def photo_maps(
    weights: NDArray[np.float32], tower: VisionTower, size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Lay token weights over a photo.

    Args:
        weights: float[W, N], a row for each map, in the order of the tower's tokens.
        tower: whose encoders say what their tokens are.
        size: width and height of the photo in pixels.

    Returns:
        float[W, h, w] with `SIDE` as the shorter side, each cell's weight spread evenly over its area and encoders
        and layers added; and bool[h, w], False where no encoder saw the photo.
    """
    width, height = (round(side * SIDE / min(size)) for side in size)
    maps = np.zeros((len(weights), height, width), np.float32)
    seen = np.zeros((height, width), bool)
    start = 0
    for encoder in tower.encoders:
        left, top, right, bottom = encoder.preprocessing.seen_box(*size)
        for block in encoder.layout():
            share = weights[:, start : start + block.tokens]
            start += block.tokens
            if block.grid is None:
                continue
            rows = _cells(height, size[1], top, bottom, block.grid[0])
            columns = _cells(width, size[0], left, right, block.grid[1])
            inside = (rows >= 0)[:, None] & (columns >= 0)
            cells = (rows[:, None] * block.grid[1] + columns)[inside]
            area = np.bincount(cells, minlength=block.tokens)
            maps[:, inside] += (share / np.maximum(area, 1))[:, cells]
            seen |= inside
    return maps, seen


def _cells(pixels: int, length: int, start: float, end: float, count: int) -> NDArray[np.int64]:
    """For each pixel of a map of a photo of `length`: which of `count` cells between start and end its centre
    lies in, -1 for none."""
    places = (np.arange(pixels) + 0.5) * length / pixels
    cells = np.floor((places - start) / (end - start) * count).astype(np.int64)
    return np.where((cells >= 0) & (cells < count), cells, -1)


def draw(
    photo: Image.Image, maps: NDArray[np.float32], seen: NDArray[np.bool_], labels: Sequence[str], columns: int = 4
) -> Image.Image:
    """One panel for each map: the photo in grey with the map in colour, and a label below.

    All panels share one colour scale, so a word that the patches hardly moved stays dark. What no encoder saw is
    darkened.
    """
    height, width = seen.shape
    grey = np.asarray(photo.convert("L").resize((width, height))) * np.where(seen, 0.6, 0.15)
    background = Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    highest = max(float(maps.max(initial=0.0)), 1e-12)
    rows = -(-len(labels) // columns)
    sheet = Image.new("RGB", (min(columns, len(labels)) * width, rows * (height + LINE)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(LINE - 10)
    for index, (values, label) in enumerate(zip(maps, labels, strict=True)):
        left, top = index % columns * width, index // columns * (height + LINE)
        heat = Image.fromarray((np.sqrt(values / highest) * 255).astype(np.uint8))  # the root shows small weights
        colours = ImageOps.colorize(heat, "black", "yellow", mid="red")
        sheet.paste(Image.composite(colours, background, heat.point(lambda value: value * 0.8)), (left, top))
        pen.text((left + 4, top + height + 4), label, fill="black", font=font)
    return sheet
