"""report.json: what every evaluation writes, and what makes two of them comparable."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from excitor_mm.errors import DataError
from excitor_mm.files import read_json, write_json, write_text
from excitor_mm.references import Id, ids_hash, references_hash

FORMAT_VERSION = 2
FILE = "report.json"


def make_report(
    task: str,
    scores: Mapping[str, float],
    *,
    predictions: Path,
    references: str,
    truth: Mapping[Id, Sequence[str]],
    split: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A report. Only reports with equal `references_hash` are ever compared.

    Args:
        task: "captions", "vqa" or "scienceqa".
        scores: x100.
        predictions: the scored file; what `excitor-mm predict` noted beside it (adapter, prompt, decoding)
            comes along.
        references: path of the references.
        truth: image or question id -> reference texts, of what was scored.
        split: of the references.
        more: further keys.
    """
    meta = predictions.with_suffix(".meta.json")
    return {
        "format_version": FORMAT_VERSION,
        "task": task,
        "scores": dict(scores),
        "count": len(truth),
        "references": Path(references).name,
        "references_hash": references_hash(truth),
        "ids_hash": ids_hash(truth),
        "split": split,
        "predictions": predictions.name,
        **(read_json(meta) if meta.is_file() else {}),
        "versions": {name: version(name) for name in ("pycocoevalcap", "excitor-mm")},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **more,
    }


def write_report_files(
    output: Path, report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], rows_file: str
) -> None:
    """Write report.json, and a file of one JSON row an image or question beside it."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(output.with_name(rows_file), lines)
    write_json(output, report)


def read_report(path: Path) -> dict[str, Any]:
    """Read a report.json, or the one in a folder.

    Raises:
        DataError: not a report, or of another format version.
    """
    path = path / FILE if path.is_dir() else path
    report = read_json(path)
    if not isinstance(report, dict) or not isinstance(report.get("scores"), dict):
        raise DataError(f"{path} is not a report: give the report.json that `excitor-mm evaluate` wrote.")
    if report.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {report.get('format_version')!r}, expected {FORMAT_VERSION}: evaluate again."
        )
    return report
