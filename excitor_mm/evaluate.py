"""Score a predictions file: a function of two files that needs no model.

In: predictions and references. Out: report.json, and per_image.jsonl beside it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from excitor_mm.data.index import write_json
from excitor_mm.errors import DataError
from excitor_mm.metrics.captions import METRICS, score_captions
from excitor_mm.references import Id, read_predictions, read_references, references_hash


def evaluate_captions(
    predictions: Path,
    references: str,
    *,
    output: Path | None = None,
    split: str | None = None,
    ids: Path | None = None,
    metrics: Sequence[str] = METRICS,
    subset: bool = False,
    shuffled_control: bool = False,
) -> dict[str, Any]:
    """Score captions.

    Args:
        predictions: predictions.jsonl (with predictions.meta.json beside it) or a COCO results file.
        references: see `read_references`; with `split` and `ids`.
        output: report.json to write; None: only returned.
        metrics: see `score_captions`.
        subset: score only the reference images that were predicted. CIDEr's word weights then come from
            the subset, so the report says so.
        shuffled_control: also score the captions moved to other images, which is what a model that does not
            look would reach.

    Returns:
        The report; scores are x100.

    Raises:
        DataError: the files do not fit each other.
        DependencyError: no Java.
    """
    guesses = read_predictions(predictions)
    truth = read_references(references, split, ids)
    whole = len(truth)
    if subset:
        truth = {i: captions for i, captions in truth.items() if i in guesses}
    result = score_captions(guesses, truth, metrics)
    report: dict[str, Any] = {
        "format_version": 1,
        "task": "captions",
        "scores": result.scores,
        "failed": result.failed,
        "images": result.images,
        "subset_of": whole if len(truth) < whole else None,
        "references": Path(references).name,
        "references_hash": references_hash(truth),
        "split": split,
        "predictions": predictions.name,
        **_meta(predictions),
        "versions": {name: version(name) for name in ("pycocoevalcap", "excitor-mm")},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if shuffled_control:
        shuffled = score_captions(shuffle_captions(guesses), truth, ["CIDEr"])
        report["shuffled_control"] = shuffled.scores
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {"image_id": i, "caption": guesses[i], **{m: round(v[i], 4) for m, v in result.per_image.items()}}
            for i in truth
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (output.parent / "per_image.jsonl").write_text(lines, encoding="utf-8")
        write_json(output, report)
    return report


def shuffle_captions(captions: Mapping[Id, str], seed: int = 0) -> dict[Id, str]:
    """Each caption moved to another image, along one cycle through all of them.

    Because a caption depends on its image alone, this equals shuffling the images among the samples.

    Raises:
        DataError: fewer than two images.
    """
    if len(captions) < 2:
        raise DataError(f"There is {len(captions)} image: the shuffled control needs at least 2.")
    order = sorted(captions, key=str)
    random.Random(seed).shuffle(order)
    moved = {image: captions[other] for image, other in zip(order, [*order[1:], order[0]], strict=True)}
    return {image: moved[image] for image in captions}


def _meta(predictions: Path) -> dict[str, Any]:
    """What `excitor-mm predict` noted about the adapter, the prompt and the decoding."""
    path = predictions.with_suffix(".meta.json")
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def format_scores(report: Mapping[str, Any]) -> str:
    """A short table for the terminal."""
    of = f", a SUBSET of {report['subset_of']}: not comparable" if report["subset_of"] else ""
    lines = [f"{report['images']} images of {report['references']} ({report['references_hash']}){of}; x100"]
    lines += [f"  {name:<8} {score:8.2f}" for name, score in report["scores"].items()]
    for name, score in report.get("shuffled_control", {}).items():
        lines.append(f"  {name:<8} {score:8.2f}  with the captions moved to other images")
    lines += [f"  {name:<8} failed: {reason}" for name, reason in report["failed"].items()]
    return "\n".join(lines)
