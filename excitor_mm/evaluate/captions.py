"""Score a file of captions: a function of two files that needs no model.

In: predictions and references. Out: report.json, and per_image.jsonl beside it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from excitor_mm.data.images import load_image
from excitor_mm.data.shards import list_shards, read_shard
from excitor_mm.errors import ConfigError, DataError
from excitor_mm.evaluate.reports import make_report, write_report_files
from excitor_mm.metrics.bootstrap import interval
from excitor_mm.metrics.captions import METRICS, CaptionScores, score_captions, wording
from excitor_mm.metrics.clip_score import clip_scores
from excitor_mm.references import Id, read_predictions, read_references

PER_IMAGE = "per_image.jsonl"
LONG = 100  # words; no COCO reference comes near


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
    against: Path | None = None,
    clip_model: str | None = None,
    pictures: str | None = None,
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
        against: other predictions for the same images, compared image by image; see `compare_scores`.
        clip_model: also CLIPScore and RefCLIPScore by this model (see `clip_scores`), which needs `pictures`.
        pictures: shards with the images.

    Returns:
        The report; scores and their 95 % intervals are x100. `wording` as in `metrics.captions`.

    Raises:
        DataError: the files do not fit each other.
        DependencyError: no Java.
    """
    guesses = read_predictions(predictions)
    truth = read_references(references, split, ids)
    whole = len(truth)
    if subset:
        truth = {i: captions for i, captions in truth.items() if i in guesses}
    if pictures is not None:
        _check_pictures(pictures, truth)
    result = score_captions(guesses, truth, metrics)
    more: dict[str, Any] = {}
    if clip_model is not None:
        more["clip_model"] = clip_model
        for name, values in _clip_scores(clip_model, pictures, guesses, truth).items():
            result.add_means(name, values)
    if shuffled_control:
        more["shuffled_control"] = score_captions(shuffle_captions(guesses), truth, ["CIDEr"]).scores
    if against is not None:
        other = score_captions(read_predictions(against), truth, metrics)
        more["against"] = {"predictions": against.name, "differences": compare_scores(result, other)}
    report = make_report(
        "captions",
        result.scores,
        predictions=predictions,
        references=references,
        truth=truth,
        split=split,
        subset_of=whole if len(truth) < whole else None,
        intervals=result.intervals(),
        failed=result.failed,
        remarks=_remarks(guesses),
        wording=wording(guesses[i] for i in truth),
        **more,
    )
    if output is not None:
        rows = [
            {"image_id": i, "caption": guesses[i], **{m: round(v[i], 4) for m, v in result.per_image.items()}}
            for i in truth
        ]
        write_report_files(output, report, rows, PER_IMAGE)
    return report


def _check_pictures(pictures: str, truth: Mapping[Id, Sequence[str]]) -> None:
    found = {sample.image_id for shard in list_shards(pictures) for sample in read_shard(shard, lambda _: None)}
    if absent := [i for i in truth if i not in found]:
        raise DataError(
            f"{pictures} lacks the pictures of {len(absent)} of {len(truth)} images {absent[:5]}: give the shards "
            "that were captioned."
        )


def _clip_scores(
    model: str, pictures: str | None, guesses: Mapping[Id, str], truth: Mapping[Id, Sequence[str]]
) -> dict[str, dict[Id, float]]:
    if pictures is None:
        raise ConfigError("CLIPScore looks at the images: give the shards that hold them with --pictures.")
    shards = list_shards(pictures)
    samples = (sample for shard in shards for sample in read_shard(shard, lambda _: None))
    images = ((s.image_id, load_image(s.image)) for s in samples if s.image is not None and s.image_id in truth)
    found = clip_scores(model, images, guesses, truth)
    return {name: {i: values[i] for i in truth} for name, values in found.items()}


def compare_scores(ours: CaptionScores, other: CaptionScores) -> dict[str, dict[str, Any]]:
    """Paired comparison on the same images.

    Returns:
        For each metric: difference of the scores of the set (ours - other, x100), its 95 % interval over the same
        resamplings of the images, and the number of images on which ours wins, loses and ties.
    """
    differences = {}
    for metric in ours.scores.keys() & other.scores.keys():
        pairs = np.array([(value, other.per_image[metric][i]) for i, value in ours.per_image[metric].items()])
        differences[metric] = {
            "difference": ours.scores[metric] - other.scores[metric],
            "interval": interval(ours.draws[metric] - other.draws[metric]),
            "wins": int((pairs[:, 0] > pairs[:, 1]).sum()),
            "losses": int((pairs[:, 0] < pairs[:, 1]).sum()),
            "ties": int((pairs[:, 0] == pairs[:, 1]).sum()),
        }
    return differences


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


def _remarks(captions: Mapping[Id, str]) -> list[str]:
    """Captions that were scored but hardly meant: a sentence for each kind."""
    kinds = {
        "are empty": lambda text: not text.strip(),
        f"have more than {LONG} words": lambda text: len(text.split()) > LONG,
        "hold line breaks or control characters": lambda text: not text.strip().replace(" ", "").isprintable(),
    }
    found = {kind: [i for i, text in captions.items() if odd(text)] for kind, odd in kinds.items()}
    return [
        f"{len(images)} captions {kind} and were scored as they are: look at images {images[:5]}."
        for kind, images in found.items()
        if images
    ]


def format_scores(report: Mapping[str, Any]) -> str:
    """A short table for the terminal."""
    of = f", a SUBSET of {report['subset_of']}: not comparable" if report["subset_of"] else ""
    lines = [f"{report['count']} images of {report['references']} ({report['references_hash']}){of}; x100"]
    for name, score in report["scores"].items():
        low, high = report["intervals"][name]
        lines.append(f"  {name:<8} {score:8.2f}  95 %: {low:.2f} to {high:.2f}")
    for name, score in report.get("shuffled_control", {}).items():
        lines.append(f"  {name:<8} {score:8.2f}  with the captions moved to other images")
    for name, row in report.get("against", {}).get("differences", {}).items():
        low, high = row["interval"]
        lines.append(
            f"  {name:<8} {row['difference']:+8.2f}  against {report['against']['predictions']}, 95 %: {low:+.2f} to "
            f"{high:+.2f}; wins {row['wins']}, losses {row['losses']}, ties {row['ties']}"
        )
    lines += [f"  {name:<8} failed: {reason}" for name, reason in report["failed"].items()]
    written = report["wording"]
    lines.append(
        f"  wording  {written['mean_words']:8.2f}  words a caption, {100 * written['repetitive']:.1f} % of them "
        f"repetitive, {written['distinct_words']} different words"
    )
    return "\n".join([*lines, *report["remarks"]])
