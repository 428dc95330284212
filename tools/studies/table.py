"""study.json and study.md: the figures of all runs, and the table made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from suites.measure import machine

from excitor_mm.files import write_json, write_text
from studies import Outcome

HEADS = (
    "row",
    "prompt",
    "trainables",
    "best rate",
    "test CIDEr, mean (lowest to highest)",
    "shuffled",
    "validation",
    "s a step",
    "peak MiB",
    "perplexity before, after",
)


def write_study(outcomes: Sequence[Outcome], output: Path) -> str:
    """Write both files of the rows that are done; returns the page."""
    where = machine()
    write_json(output / "study.json", {"machine": where, "rows": [_figures(outcome) for outcome in outcomes]})
    page = as_markdown(outcomes, where)
    write_text(output / "study.md", page)
    return page


def _figures(outcome: Outcome) -> dict[str, Any]:
    return {
        "row": outcome.row.name,
        "best_rate": outcome.rate,
        "grid": {f"{rate:g}": score for rate, score in outcome.grid.items()},
        "seeds": outcome.results,
        "other_rates": outcome.others,
    }


def as_markdown(outcomes: Sequence[Outcome], where: Mapping[str, Any]) -> str:
    """The table of the rows over their seeds at the best rate, and that of the rates."""
    lines = [
        f"`study`: {json.dumps(where)}; {max(len(o.results) for o in outcomes)} seeds; CIDEr x100\n",
        f"| {' | '.join(HEADS)} |",
        "|---" * len(HEADS) + "|",
        *(f"| {' | '.join(_cells(outcome))} |" for outcome in outcomes),
        "\nValidation CIDEr of each rate with the first seed; the best one was kept.\n",
        "| row | rate: score |",
        "|---|---|",
        *(f"| {outcome.row.name} | {_grid(outcome)} |" for outcome in outcomes),
    ]
    return "\n".join(lines) + "\n"


def _cells(outcome: Outcome) -> list[str]:
    found = outcome.results
    scores = [result["scores"]["CIDEr"] for result in found]
    before, after = (mean(result["perplexity"][side] for result in found) for side in ("base", "tuned"))
    return [
        outcome.row.name,
        "`" + json.dumps(found[0]["prompt"], ensure_ascii=False)[1:-1].replace("|", "\\|") + "`",
        f"{found[0]['trainables']:,}",
        f"{outcome.rate:g}",
        f"{mean(scores):.1f} ({min(scores):.1f} to {max(scores):.1f})",
        f"{mean(result['shuffled'] for result in found):.1f}",
        f"{mean(result['validation'] for result in found):.1f}",
        f"{median(result['step_seconds'] for result in found):.2f}",
        f"{max(result['peak_mib'] for result in found):,.0f}",
        f"{before:.2f}, {after:.2f}",
    ]


def _grid(outcome: Outcome) -> str:
    """The best rate in bold, and a warning where a still smaller or larger one might have been better."""
    shown = [
        f"**{rate:g}: {score:.1f}**" if rate == outcome.rate else f"{rate:g}: {score:.1f}"
        for rate, score in sorted(outcome.grid.items())
    ]
    edge = len(shown) > 1 and outcome.rate in (min(outcome.grid), max(outcome.grid))
    return ", ".join(shown) + ("; at the edge of the grid" if edge else "")
