"""Several reports in one table, and beside them what others published about the same images."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from excitor_mm.errors import DataError
from excitor_mm.evaluate.published import CLAIMS
from excitor_mm.evaluate.reports import read_report

FORMATS = ("text", "markdown", "html")
MUST_AGREE = {
    "task": "task",
    "references_hash": "references",
    "ids_hash": "images or questions",
    "split": "split",
    "subset_of": "subset",
    "rule": "rule",
}
"""Key of a report -> what it is called: scores stand in one column only where all of these agree."""


def compare_reports(paths: Sequence[Path], *, published: bool = False, style: str = "text") -> str:
    """A table with a row for each report.

    Args:
        paths: report.json files, or folders with one.
        published: add what others claim, marked as such. Only claims about exactly these images are added.
        style: of `FORMATS`.

    Raises:
        DataError: not reports, or reports of different sets.
    """
    reports = [read_report(path) for path in paths]
    for path, report in zip(paths, reports, strict=True):
        for key, name in MUST_AGREE.items():
            if report.get(key) != reports[0].get(key):
                raise DataError(
                    f"{paths[0]} and {path} differ in their {name} ({reports[0].get(key)} and {report.get(key)}): "
                    "their scores cannot stand in one column. Evaluate both on the same set."
                )
    claims = CLAIMS.get((reports[0]["task"], reports[0]["ids_hash"]), ()) if published else ()
    if published and not claims:
        raise DataError(
            f"No published scores are known for these {reports[0]['count']} items ({reports[0]['references']}): "
            "leave out --published, or evaluate on the whole Karpathy or ScienceQA test split."
        )
    columns = list(dict.fromkeys(name for report in reports for name in report["scores"]))
    table = [["model", *columns, "regime", "source"]]
    for path, report in zip(paths, reports, strict=True):
        cells = [_cell(report, name) for name in columns]
        table.append(
            [str(report.get("adapter", report["predictions"])), *cells, _regime(report), f"measured, {path}"]
        )
    for claim in claims:
        cells = [f"{claim.scores[name]:.1f}" if name in claim.scores else "-" for name in columns]
        table.append([claim.name, *cells, claim.regime, f"CLAIM: {claim.source}"])
    first = reports[0]
    subset = f", a SUBSET of {first['subset_of']}" if first.get("subset_of") else ""
    title = (
        f"{first['task']}: {first['count']} items of {first['references']} ({first['references_hash']}){subset}; x100"
    )
    return {"text": _text, "markdown": _markdown, "html": _html}[style](title, table)


def _cell(report: dict[str, Any], name: str) -> str:
    if name not in report["scores"]:
        return "-"
    low, high = report["intervals"][name]
    return f"{report['scores'][name]:.1f} [{low:.1f}, {high:.1f}]"


def _regime(report: dict[str, Any]) -> str:
    """How it was trained and decodes: scores with and without self-critical training are told apart."""
    decoding = report.get("decoding")
    return f"{report.get('stage', 'unknown stage')}; {decoding['beams']} beams" if decoding else "unknown"


def _text(title: str, table: Sequence[Sequence[str]]) -> str:
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    for name in table[0]:
        shown.add_column(name, overflow="fold")
    for row in table[1:]:
        shown.add_row(*row)
    console = Console(file=io.StringIO(), width=None if len(table[0]) < 5 else 160)
    with console.capture() as capture:
        console.print(shown)
    return capture.get().rstrip()


def _markdown(title: str, table: Sequence[Sequence[str]]) -> str:
    rows = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "\n".join(
        [title, "", *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)]
    )


def _html(title: str, table: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join([row(table[0], "th"), *(row(cells, "td") for cells in table[1:])])
    title = html.escape(title)
    head = f"<!doctype html><meta charset=utf-8><title>{title}</title>"
    return f"{head}\n<table>\n<caption>{title}</caption>\n{body}\n</table>"
