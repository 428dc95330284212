"""Charts as inline SVG: curves against the step, and gates by layer and step. No script, colours of the page."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Points = Sequence[tuple[int, float]]

COLUMNS = 60  # steps of a gate map; more are thinned out
WIDTH, HEIGHT = 680, 220  # of the plot, in SVG units


def series(metrics: Iterable[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) of a key of metrics.jsonl."""
    return [(row["step"], row[name]) for row in metrics if name in row]


def curves(left: tuple[str, Points], right: tuple[str, Points] = ("", ())) -> str:
    """Two curves over the same steps, each with the axis of its colour; nothing with fewer than two points.

    Args:
        left, right: name and points; the right one may be empty.
    """
    points = [point for _, line in (left, right) for point in line]
    if len(left[1]) < 2:
        return ""
    last = max(step for step, _ in points)
    drawn = _line(left[1], last, "var(--accent)", 52) + _line(right[1], last, "var(--other)", 748)
    names = f"step 1 to {last}; blue: {left[0]} (left)" + (f", orange: {right[0]} (right)" if right[1] else "")
    return (
        f'<svg viewBox="0 0 800 280" role=img aria-label="{html.escape(names)}">{drawn}'
        f"<text x=400 y=275 text-anchor=middle fill=currentColor font-size=14>{html.escape(names)}</text></svg>"
    )


def _line(points: Points, last: int, colour: str, axis: int) -> str:
    if not points:
        return ""
    low, high = min(value for _, value in points), max(value for _, value in points)
    span = (high - low) or 1.0
    places = [(60 + WIDTH * step / last, 240 - HEIGHT * (value - low) / span) for step, value in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle cx={x:.1f} cy={y:.1f} r=3 fill="{colour}"/>' for x, y in places if len(places) < 30)
    side = "end" if axis < 400 else "start"
    labels = "".join(
        f'<text x={axis} y={y} text-anchor={side} fill="{colour}" font-size=14>{value:.4g}</text>'
        for y, value in ((28, high), (244, low))
    )
    return f'<polyline points="{path}" fill=none stroke="{colour}" stroke-width=2 />{dots}{labels}'


def gate_map(points: Sequence[tuple[int, Sequence[float]]], lowest_layer: int = 0) -> str:
    """Gates by layer (upwards) and step (to the right); the wider open, the stronger the colour.

    Args:
        points: step -> one value for each excited layer, the lowest layer first.
        lowest_layer: index of the first one.
    """
    if not points:
        return ""
    kept = points[:: -(-len(points) // COLUMNS)]
    layers = len(kept[0][1])
    highest = max((value for _, values in kept for value in values), default=0) or 1.0
    width, height = WIDTH / len(kept), min(20.0, 400 / layers)
    cells = [
        f"<rect x={60 + column * width:.1f} y={(layers - 1 - row) * height:.1f} width={width + 0.5:.1f} "
        f'height={height:.1f} fill="var(--accent)" fill-opacity={value / highest:.3f}>'
        f"<title>layer {lowest_layer + row}, step {step}: {value:.4f}</title></rect>"
        for column, (step, values) in enumerate(kept)
        for row, value in enumerate(values)
    ]
    bottom = layers * height
    text = f"step {kept[0][0]} to {kept[-1][0]}; full colour: {highest:.4g}"
    return (
        f'<svg viewBox="0 0 800 {bottom + 26:.0f}" role=img aria-label="gates by layer and step">{"".join(cells)}'
        f"<text x=52 y=14 text-anchor=end fill=currentColor font-size=14>{lowest_layer + layers - 1}</text>"
        f"<text x=52 y={bottom:.0f} text-anchor=end fill=currentColor font-size=14>{lowest_layer}</text>"
        f"<text x=400 y={bottom + 20:.0f} text-anchor=middle fill=currentColor font-size=14>{text}</text></svg>"
    )
