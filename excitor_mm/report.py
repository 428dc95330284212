"""report.html: one self-contained page of pictures, captions, scores and the learning curve."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from excitor_mm.data.images import load_image
from excitor_mm.data.shards import list_shards, read_shard
from excitor_mm.files import read_rows, write_text
from excitor_mm.references import read_predictions

THUMBNAIL = 224  # pixels
SHOWN = 24  # pictures; the best and the worst half of them

STYLE = """
:root { color-scheme: light dark; --line: #8886; --accent: #2a6fdb; --other: #d9822b }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse }
td, th { padding: .25rem .75rem; border-bottom: 1px solid var(--line); text-align: left }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 1rem }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; overflow: hidden }
figure img { width: 100%; display: block } figcaption { padding: .5rem .75rem } small { opacity: .75 }
svg { width: 100%; height: auto } code { white-space: pre-wrap }
"""


@dataclass(frozen=True)
class Picture:
    """One card of the page."""

    image: bytes
    """The encoded image."""
    caption: str
    references: tuple[str, ...]
    score: float
    """CIDEr x100 of this caption."""


def collect_pictures(shards: str, predictions: Path, per_image: Path) -> list[Picture]:
    """Join images and references of shards with predictions and their scores, best first."""
    captions = read_predictions(predictions)
    scores = {row["image_id"]: row["CIDEr"] for row in read_rows(per_image)}
    pictures = [
        Picture(sample.image or b"", captions[sample.image_id], sample.captions, scores[sample.image_id])
        for shard in list_shards(shards)
        for sample in read_shard(shard, lambda _: None)
        if sample.image_id in captions
    ]
    return sorted(pictures, key=lambda picture: -picture.score)


def write_report(
    path: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    pictures: Sequence[Picture],
    metrics: Sequence[Mapping[str, Any]] = (),
    commands: Sequence[str] = (),
) -> None:
    """Write the page.

    Args:
        path: report.html.
        title: heading.
        facts: name -> value, a table at the top.
        pictures: best first; with more than `SHOWN`, the best and the worst are shown.
        metrics: lines of metrics.jsonl, for the curve; none: no curve.
        commands: what made these figures.
    """
    half = SHOWN // 2
    groups = [("Pictures", pictures)]
    if len(pictures) > SHOWN:
        groups = [("Best captions", pictures[:half]), ("Worst captions", pictures[-half:])]
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in facts.items())
    cards = "".join(f"<h2>{name}</h2><div class=cards>{''.join(map(_card, group))}</div>" for name, group in groups)
    curve = f"<h2>Learning curve</h2>{_curve(metrics)}" if metrics else ""
    lines = html.escape("\n".join(commands))
    made = f"<h2>Commands</h2><pre><code>{lines}</code></pre>" if commands else ""
    page = f"""<!doctype html><html lang=en><meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>
<style>{STYLE}</style><h1>{html.escape(title)}</h1><table>{rows}</table>
{curve}{cards}{made}</html>
"""
    write_text(path, page)


def _card(picture: Picture) -> str:
    image = load_image(picture.image)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    references = "<br>".join(html.escape(text) for text in picture.references)
    return (
        f'<figure><img alt="" src="data:image/jpeg;base64,{data}"><figcaption><b>{html.escape(picture.caption)}'
        f"</b><br><small>CIDEr {picture.score:.0f}<br>{references}</small></figcaption></figure>"
    )


def _curve(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Training loss and validation CIDEr against the step, as inline SVG with an axis for each."""
    loss = [(row["step"], row["loss"]) for row in metrics if "loss" in row]
    cider = [(row["step"], row["cider"]) for row in metrics if "cider" in row]
    if len(loss) < 2:
        return "<p>Too few steps for a curve.</p>"
    last = max(step for step, _ in loss)
    lines = _line(loss, last, "var(--accent)", 52) + _line(cider, last, "var(--other)", 748)
    return (
        f'<svg viewBox="0 0 800 280" role=img aria-label="learning curve">{lines}'
        f"<text x=400 y=275 text-anchor=middle fill=currentColor font-size=14>step 1 to {last}; blue: training loss "
        "(left), orange: validation CIDEr (right)</text></svg>"
    )


def _line(points: Sequence[tuple[int, float]], last: int, colour: str, axis: int) -> str:
    if not points:
        return ""
    low, high = min(value for _, value in points), max(value for _, value in points)
    span = (high - low) or 1.0
    places = [(60 + 680 * step / last, 240 - 220 * (value - low) / span) for step, value in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle cx={x:.1f} cy={y:.1f} r=3 fill="{colour}"/>' for x, y in places if len(places) < 30)
    side = "end" if axis < 400 else "start"
    labels = "".join(
        f'<text x={axis} y={y} text-anchor={side} fill="{colour}" font-size=14>{value:.4g}</text>'
        for y, value in ((28, high), (244, low))
    )
    return f'<polyline points="{path}" fill=none stroke="{colour}" stroke-width=2 />{dots}{labels}'
