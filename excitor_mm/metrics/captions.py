"""Caption metrics: pycocoevalcap's own scorers, called one by one.

`COCOEvalCap` constructs SPICE first, which downloads; here each metric stands alone and one that fails does
not take the others with it. All scores are x100, CIDEr too (papers print 113.1 where the code prints 1.131).
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from excitor_mm.errors import DataError
from excitor_mm.metrics.java import find_java
from excitor_mm.metrics.ptb import ptb_tokenize

Id = int | str
METRICS = ("BLEU", "METEOR", "ROUGE-L", "CIDEr")
"""The default ones. SPICE is scored on request only: it downloads CoreNLP and needs Java 8."""


@dataclass(frozen=True)
class CaptionScores:
    """All x100."""

    scores: dict[str, float]
    """BLEU-1..4, METEOR, ROUGE-L, CIDEr over the whole set."""
    per_image: dict[str, dict[Id, float]]
    """The same metrics for each image; a corpus score is not their mean for BLEU."""
    failed: dict[str, str]
    """Metric -> why it could not be computed."""
    images: int


def score_captions(
    predictions: Mapping[Id, str],
    references: Mapping[Id, Sequence[str]],
    metrics: Sequence[str] = METRICS,
) -> CaptionScores:
    """Score one caption an image against its references.

    Args:
        predictions: image id -> caption; exactly the ids of `references`.
        references: image id -> captions. CIDEr weighs words by how rare they are among these images, so
            scores of different sets cannot be compared.
        metrics: of `METRICS`, and "SPICE".

    Raises:
        DataError: the two do not cover the same images, or something is not a text.
        DependencyError: no Java.
    """
    _check(predictions, references)
    ids = list(references)
    tokens = ptb_tokenize({**{("r", i): references[i] for i in ids}, **{("p", i): [predictions[i]] for i in ids}})
    truth = {i: tokens[("r", i)] for i in ids}
    guess = {i: tokens[("p", i)] for i in ids}
    scores: dict[str, float] = {}
    per_image: dict[str, dict[Id, float]] = {}
    failed: dict[str, str] = {}
    for metric in metrics:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # pycocoevalcap prints; stdout is for results
                found = _score(metric, guess, truth)
        except Exception as error:  # a broken pipe to Java, a failed download: the others still count
            failed[metric] = f"{type(error).__name__}: {error}"
            continue
        for name, (total, single) in found.items():
            scores[name] = 100 * total
            per_image[name] = {i: 100 * value for i, value in zip(ids, single, strict=True)}
    return CaptionScores(scores, per_image, failed, len(ids))


def _check(predictions: Mapping[Id, Any], references: Mapping[Id, Sequence[Any]]) -> None:
    missing = [i for i in references if i not in predictions]
    extra = [i for i in predictions if i not in references]
    if missing or extra:
        raise DataError(
            f"The predictions lack {len(missing)} images of the references {missing[:5]} and have {len(extra)} "
            f"others {extra[:5]}: predict exactly the reference images, or pass --subset."
        )
    for i, texts in references.items():
        if not texts:
            raise DataError(f"Image {i} has no reference caption: leave it out of the references.")
        for text in [predictions[i], *texts]:
            if not isinstance(text, str):
                raise DataError(f"A caption of image {i} is {text!r}, expected a text.")
    if not references:
        raise DataError("There are no reference images: check the references file and the split.")


def _score(metric: str, guess: dict, truth: dict) -> dict[str, tuple[float, list[float]]]:
    if metric == "BLEU":
        from pycocoevalcap.bleu.bleu import Bleu

        totals, singles = Bleu(4).compute_score(truth, guess, verbose=0)
        return {f"BLEU-{n + 1}": (totals[n], list(singles[n])) for n in range(4)}
    if metric == "ROUGE-L":
        from pycocoevalcap.rouge.rouge import Rouge

        total, single = Rouge().compute_score(truth, guess)
    elif metric == "CIDEr":
        from pycocoevalcap.cider.cider import Cider

        total, single = Cider().compute_score(truth, guess)
    elif metric == "METEOR":
        total, single = _meteor(guess, truth)
    elif metric == "SPICE":
        from pycocoevalcap.spice.spice import Spice

        total, rows = Spice().compute_score(truth, guess)
        single = [row["All"]["f"] for row in rows]
    else:
        raise DataError(f"Metric {metric!r} is unknown: choose of {', '.join(METRICS)}, SPICE.")
    return {metric: (float(total), [float(value) for value in single])}


def _meteor(guess: dict, truth: dict) -> tuple[float, Sequence[float]]:
    """METEOR talks to a Java child through lines with `|||` in them."""
    from pycocoevalcap.meteor.meteor import Meteor

    def safe(captions: dict) -> dict:
        return {key: [caption.replace("|||", " ") for caption in group] for key, group in captions.items()}

    with _java_on_path():
        scorer = Meteor()
    try:
        total, single = scorer.compute_score(safe(truth), safe(guess))
    finally:
        scorer.meteor_p.kill()
        scorer.meteor_p.wait()
    if not math.isfinite(total):
        raise DataError(f"METEOR gave {total}")
    return total, single


@contextlib.contextmanager
def _java_on_path() -> Iterator[None]:
    """METEOR starts `java` by name and parses its decimals: find ours, with points and not commas."""
    names = ("PATH", "LC_ALL")
    before = {name: os.environ.get(name) for name in names}
    os.environ["PATH"] = f"{find_java().parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ["LC_ALL"] = "C.UTF-8"
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
