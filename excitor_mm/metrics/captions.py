"""Caption metrics: pycocoevalcap's own scorers, called one by one.

`COCOEvalCap` constructs SPICE first, which downloads; here each metric stands alone and one that fails does
not take the others with it. All scores are x100, CIDEr too (papers print 113.1 where the code prints 1.131).
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from excitor_mm.errors import DataError, ExcitorError
from excitor_mm.metrics.bootstrap import Bootstrap, Floats, interval
from excitor_mm.metrics.coverage import check_coverage
from excitor_mm.metrics.meteor import Meteor
from excitor_mm.metrics.ptb import ptb_tokenize, words

Id = int | str
METRICS = ("BLEU", "METEOR", "ROUGE-L", "CIDEr")
"""The default ones. SPICE is scored on request only: it downloads CoreNLP (385 MB) and needs Java 8."""


@dataclass(frozen=True)
class CaptionScores:
    """All x100."""

    scores: dict[str, float]
    """BLEU-1..4, METEOR, ROUGE-L, CIDEr over the whole set."""
    per_image: dict[str, dict[Id, float]]
    """The same metrics for each image; the score of the set is their mean for ROUGE-L, CIDEr and SPICE only."""
    draws: dict[str, Floats]
    """float[draws]: the score of the set in each resampling of the images, CIDEr's word weights kept."""
    failed: dict[str, str]
    """Metric -> why it could not be computed."""
    images: int

    def add_means(self, name: str, values: Mapping[Id, float]) -> None:
        """A further metric, x100, that is the mean of a score for each image."""
        single = np.array([values[i] for i in next(iter(self.per_image.values()), values)])
        self.scores[name], self.per_image[name] = float(single.mean()), dict(values)
        self.draws[name] = Bootstrap(self.images).means(single)

    def intervals(self) -> dict[str, list[float]]:
        """95 % bootstrap intervals over images."""
        return {name: interval(draws) for name, draws in self.draws.items()}


class _Found(NamedTuple):
    """One metric, x1: of the set, of each image, of each resampling."""

    total: float
    single: Floats
    draws: Floats


def wording(captions: Iterable[str]) -> dict[str, float]:
    """How captions are written, whatever they say; training for a score can spoil it.

    Returns:
        mean_words: words a caption. repetitive: share of the captions in which a word stands twice in a row, or four
        words come again. distinct_words: number of different words in all.
    """
    split = [words(caption) for caption in captions]
    return {
        "mean_words": sum(map(len, split)) / max(1, len(split)),
        "repetitive": sum(map(_is_repetitive, split)) / max(1, len(split)),
        "distinct_words": len({word for caption in split for word in caption}),
    }


def _is_repetitive(caption: Sequence[str]) -> bool:
    phrases = [tuple(caption[start : start + 4]) for start in range(len(caption) - 3)]
    return len(set(phrases)) < len(phrases) or any(a == b for a, b in itertools.pairwise(caption))


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
    bootstrap = Bootstrap(len(ids))
    result = CaptionScores({}, {}, {}, {}, len(ids))
    for metric in metrics:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # pycocoevalcap prints; stdout is for results
                found = _score(metric, guess, truth, bootstrap)
        except Exception as error:  # Java that dies, a failed download: the others still count
            result.failed[metric] = (
                str(error) if isinstance(error, ExcitorError) else f"{type(error).__name__}: {error}"
            )
            continue
        for name, (total, single, draws) in found.items():
            result.scores[name] = 100 * total
            result.per_image[name] = dict(zip(ids, (100 * single).tolist(), strict=True))
            result.draws[name] = 100 * draws
    return result


def _check(predictions: Mapping[Id, Any], references: Mapping[Id, Sequence[Any]]) -> None:
    check_coverage(predictions, references, "images")
    for i, texts in references.items():
        if not texts:
            raise DataError(f"Image {i} has no reference caption: leave it out of the references.")
        for text in [predictions[i], *texts]:
            if not isinstance(text, str):
                raise DataError(f"A caption of image {i} is {text!r}, expected a text.")


def _score(metric: str, guess: dict, truth: dict, bootstrap: Bootstrap) -> dict[str, _Found]:
    if metric == "BLEU":
        return _bleu(guess, truth, bootstrap)
    if metric == "METEOR":
        return {metric: _meteor(guess, truth, bootstrap)}
    if metric == "ROUGE-L":
        from pycocoevalcap.rouge.rouge import Rouge

        total, single = Rouge().compute_score(truth, guess)
    elif metric == "CIDEr":
        from pycocoevalcap.cider.cider import Cider

        if len(truth) < 2:
            raise DataError("CIDEr of a single image is 0 whatever its caption is: score at least 2 images.")
        total, single = Cider().compute_score(truth, guess)
    elif metric == "SPICE":
        from pycocoevalcap.spice.spice import Spice

        total, rows = Spice().compute_score(truth, guess)
        single = [row["All"]["f"] for row in rows]
    else:
        raise DataError(f"Metric {metric!r} is unknown: choose of {', '.join(METRICS)}, SPICE.")
    values = np.asarray(single, float)
    return {metric: _Found(float(total), values, bootstrap.means(values))}


def _bleu(guess: dict, truth: dict, bootstrap: Bootstrap) -> dict[str, _Found]:
    """The set's score comes from summed counts: in each resampling, pycocoevalcap scores one text with the sums."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for i, texts in truth.items():
        scorer += (guess[i][0], texts)
    totals, singles = scorer.compute_score(option="closest")
    rows = [
        (row["testlen"], min((abs(n - row["testlen"]), n) for n in row["reflen"])[1], row) for row in scorer.ctest
    ]
    counts = np.array([[length, closest, *row["guess"], *row["correct"]] for length, closest, row in rows])
    draws = []
    for sums in bootstrap.sums(counts):
        summed = BleuScorer(n=4)
        summed.ctest = [{"testlen": sums[0], "reflen": [sums[1]], "guess": sums[2:6], "correct": sums[6:]}]
        draws.append(summed.compute_score(option="closest")[0])
    columns = zip(totals, singles, np.transpose(draws), strict=True)
    return {f"BLEU-{n + 1}": _Found(total, np.array(s), d) for n, (total, s, d) in enumerate(columns)}


def _meteor(guess: dict, truth: dict, bootstrap: Bootstrap) -> _Found:
    """The set's score comes from summed counts, which Java scores like those of one caption."""
    with Meteor() as meteor:
        counts = np.array([meteor.statistics(guess[i][0], texts) for i, texts in truth.items()])
        single = np.array([meteor.score(row) for row in counts])
        return _Found(meteor.score(counts.sum(0)), single, bootstrap.scores(counts, meteor.score))
